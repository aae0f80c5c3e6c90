# SPDX-License-Identifier: Apache-2.0
"""ONNX: bringing exported models into the form that runtimes run fast, and running them."""
