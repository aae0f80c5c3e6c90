# SPDX-License-Identifier: Apache-2.0
"""A door: the interface of loaders that say themselves how the model is called."""

from nncf.resources import NNCFDataLoader as NNCFDataLoader
