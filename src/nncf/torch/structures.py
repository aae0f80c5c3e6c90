# SPDX-License-Identifier: Apache-2.0
"""A door: structs of initialisation under the path that earlier documents name."""

from nncf.resources import AutoQPrecisionInitArgs as AutoQPrecisionInitArgs
from nncf.resources import DistributedCallbacksArgs as DistributedCallbacksArgs
from nncf.resources import ExecutionParameters as ExecutionParameters
from nncf.resources import LeGRInitArgs as LeGRInitArgs
from nncf.resources import QuantizationPrecisionInitArgs as QuantizationPrecisionInitArgs
