# SPDX-License-Identifier: Apache-2.0
"""A door: the structs that ``register_default_init_args`` registers, from ``nncf.resources``."""

from nncf.resources import AutoQPrecisionInitArgs as AutoQPrecisionInitArgs
from nncf.resources import BNAdaptationInitArgs as BNAdaptationInitArgs
from nncf.resources import DistributedCallbacksArgs as DistributedCallbacksArgs
from nncf.resources import ExecutionParameters as ExecutionParameters
from nncf.resources import LeGRInitArgs as LeGRInitArgs
from nncf.resources import ModelEvaluationArgs as ModelEvaluationArgs
from nncf.resources import QuantizationPrecisionInitArgs as QuantizationPrecisionInitArgs
from nncf.resources import QuantizationRangeInitArgs as QuantizationRangeInitArgs
from nncf.resources import TeacherArgs as TeacherArgs
