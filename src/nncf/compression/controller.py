# SPDX-License-Identifier: Apache-2.0
"""Controllers: what the training loop holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nncf.compression.schedules import CompositeScheduler, Scheduler
from nncf.compression.stage import CompressionStage
from nncf.compression.statistics import Statistics
from nncf.errors import CheckpointError, LevelError

_LOGGER = logging.getLogger("nncf")


class Controller:
    """Loss, scheduler, statistics, stage and state of one algorithm.

    Subclasses override what their algorithm has; the defaults are those of an algorithm without
    a loss and without a rate.
    """

    name = "none"

    def __init__(self) -> None:
        self.scheduler: Scheduler = Scheduler()
        self.scheduler_enabled = True

    def loss(self) -> Any:
        """Return the term to add to the training loss; 0.0 where the algorithm has none."""
        return 0.0

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:  # noqa: ARG002  # all are quick
        """Return what is compressed and how far; prints as tables."""
        return Statistics()

    def compression_stage(self) -> CompressionStage:
        return CompressionStage.UNCOMPRESSED

    @property
    def compression_rate(self) -> float | None:
        """Share of the model taken away so far; None where the algorithm has no such number.

        A rate that is set takes the place of the schedule's. Algorithms without one ignore it.
        """
        return None

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        pass

    @property
    def level(self) -> float | None:
        """How far compression is on the scale of the rate that can be set; None without one.

        ``compression_rate`` may count over more, such as all parameters of the model.
        """
        return self.compression_rate

    @property
    def is_settled(self) -> bool:
        """Whether the model is at the rate that was set; what is learned gets there in time."""
        return True

    @property
    def maximal_compression_rate(self) -> float:
        """The greatest rate that can be set."""
        return 1.0

    def disable_scheduler(self) -> None:
        """Stop the schedule where it is, so that the rate can be set by hand.

        The stage is then that of a finished schedule: what was set is the target.
        """
        self.scheduler = Scheduler()
        self.scheduler_enabled = False

    def layout_state(self) -> dict[str, Any] | None:
        """Return the state of the layout where it has changed since it was planned; else None."""
        return None

    def distributed(self) -> None:
        """Adjust to DistributedDataParallel; called after wrapping."""

    def get_state(self) -> dict[str, Any]:
        """Return the controller's JSON-able state."""
        return {
            "loss_state": {},
            "scheduler_state": self.scheduler.get_state(),
            "scheduler_enabled": self.scheduler_enabled,
            "compression_stage": int(self.compression_stage()),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``get_state`` returned; a different stage afterwards is warned about.

        A schedule that was stopped then is stopped now; one that is stopped now stays so.
        """
        if not state.get("scheduler_enabled", True) and self.scheduler_enabled:
            self.disable_scheduler()
        try:
            self.scheduler.load_state(state["scheduler_state"])
            saved = CompressionStage(int(state["compression_stage"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The state of '{self.name}' in compression_state is damaged ({error!r}). Expected the "
                "keys scheduler_state and compression_stage as get_compression_state() wrote them."
            ) from error
        if saved != self.compression_stage():
            _LOGGER.warning(
                "Current CompressionStage (%s) of the compression controller does not correspond to "
                "the value found in the checkpoint (%s)",
                self.compression_stage().name,
                saved.name,
            )


class CompressionController(Controller):
    """The object that ``create_compressed_model`` returns: all algorithms of a model as one.

    ``child_ctrls`` are the algorithms' own controllers, in the order of the configuration. The
    backend passes the functions that need its framework: ``zero_loss()``, ``strip(do_copy)``,
    ``export(path, **options)``, ``broadcast()``.
    """

    name = "compression"

    def __init__(
        self,
        model: Any,
        children: list[Controller],
        layout_states: Mapping[str, Any],
        backend: BackendActions,
    ) -> None:
        super().__init__()
        self.model = model
        self.child_ctrls = children
        self._layout_states = dict(layout_states)
        self._backend = backend
        self.scheduler: CompositeScheduler = CompositeScheduler({})
        self._gather_schedulers(epoch=-1, step=-1)

    def __repr__(self) -> str:
        names = ", ".join(child.name for child in self.child_ctrls) or "nothing"
        stage, epoch = self.compression_stage().name, self.scheduler.current_epoch
        return (
            f"Controller of {names}: stage {stage}, epoch {epoch}\n"
            "  in the loop: loss(), scheduler.epoch_step(), scheduler.step()\n"
            "  to look at: statistics()\n"
            "  to keep: get_compression_state(), strip(), export_model(path)"
        )

    def __getattr__(self, attribute: str) -> Any:
        # What one algorithm alone has (init_range, set_sparsity_level…) is at hand here.
        children = self.__dict__.get("child_ctrls", [])
        owners = [child for child in children if hasattr(child, attribute)]
        if len(owners) == 1 and not attribute.startswith("_"):
            return getattr(owners[0], attribute)
        raise AttributeError(f"{type(self).__name__} has no attribute {attribute!r}")

    def loss(self) -> Any:
        """Return the sum of the algorithms' losses as a tensor on the model's device."""
        return sum((child.loss() for child in self.child_ctrls), self._backend.zero_loss())

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:
        return Statistics.join(
            child.statistics(quickly_collected_only) for child in self.child_ctrls
        )

    def compression_stage(self) -> CompressionStage:
        stages = [child.compression_stage() for child in self.child_ctrls]
        if not stages:
            return CompressionStage.UNCOMPRESSED
        total = stages[0]
        for stage in stages[1:]:
            total = total + stage
        return total

    @property
    def compression_rate(self) -> float | None:
        rates = [child.compression_rate for child in self.child_ctrls]
        known = [rate for rate in rates if rate is not None]
        return sum(known) / len(known) if known else None

    @compression_rate.setter
    def compression_rate(self, rate: float) -> None:
        if rate > self.maximal_compression_rate:  # of one child: the others would be set already
            raise LevelError(
                f"compression_rate = {rate:g} is out of reach of all algorithms together: the "
                f"maximum is {self.maximal_compression_rate:g}. Set a lower rate, or the rates of "
                "child_ctrls one by one."
            )
        for child in self.child_ctrls:
            child.compression_rate = rate

    @property
    def maximal_compression_rate(self) -> float:
        return min((child.maximal_compression_rate for child in self.child_ctrls), default=1.0)

    @property
    def is_settled(self) -> bool:
        return all(child.is_settled for child in self.child_ctrls)

    def disable_scheduler(self, *names: str) -> None:
        """Stop the schedules of all algorithms, or of those named, where they are."""
        chosen = [child for child in self.child_ctrls if not names or child.name in names]
        for child in chosen:
            child.disable_scheduler()
        counted = self.scheduler
        self._gather_schedulers(epoch=counted.current_epoch, step=counted.current_step)

    def _gather_schedulers(self, *, epoch: int, step: int) -> None:
        """Let ``scheduler``, which stands at a step, drive the schedulers that there are now."""
        children = self.child_ctrls
        self.scheduler.children = {child.name: child.scheduler for child in children}
        self.scheduler.current_epoch, self.scheduler.current_step = epoch, step
        self.scheduler_enabled = any(child.scheduler_enabled for child in children)

    def distributed(self) -> None:
        """Make all processes start from rank 0's compression parameters.

        Call it after wrapping the model in ``DistributedDataParallel``.
        """
        self._backend.broadcast()
        for child in self.child_ctrls:
            child.distributed()

    def get_compression_state(self) -> dict[str, Any]:
        """Return all that ``create_compressed_model(compression_state=…)`` needs; JSON-able."""
        changed = {child.name: child.layout_state() for child in self.child_ctrls}
        anew = {name: state for name, state in changed.items() if state is not None}
        return {
            "builder_state": {**self._layout_states, **anew},
            "ctrl_state": {child.name: child.get_state() for child in self.child_ctrls},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back the ``ctrl_state`` part of a compression state."""
        for child in self.child_ctrls:
            if child.name not in state:
                known = ", ".join(state) or "nothing"
                raise CheckpointError(
                    f"compression_state holds no controller state for '{child.name}', only for: {known}. "
                    "Use the configuration that the checkpoint was trained with."
                )
            child.load_state(state[child.name])
        epochs = [child.scheduler.current_epoch for child in self.child_ctrls]
        steps = [child.scheduler.current_step for child in self.child_ctrls]
        self._gather_schedulers(epoch=max(epochs, default=-1), step=max(steps, default=-1))

    def strip(self, do_copy: bool = True) -> Any:
        """Return the plain model: compressed weights, native operators, no training-time ops."""
        return self._backend.strip(do_copy)

    def export_model(self, save_path: str, save_format: str | None = None, **options: Any) -> Any:
        """Write the deployable file and prove that it computes what the trained model computes.

        ``.onnx`` writes ONNX (``save_format`` "onnx", "onnx_<opset>", "onnx_int8" or
        "onnx_fakequantize"), ``.xml`` OpenVINO IR. See the backend's ``export`` for further options and errors.
        """
        return self._backend.export(save_path, save_format=save_format, **options)

    def check_export(self, save_path: str, save_format: str | None = None) -> None:
        """Raise at once what ``export_model`` would raise after training about the form of the file.

        That is: a form that is unknown, that does not go with the name, that needs a package which
        is absent, or that the runtime does not read; a folder that cannot be written to. Whether
        the model itself can be written, ``export_model`` says, also before training.
        """
        self._backend.check_export(save_path, save_format)


class BackendActions:
    """The functions of a CompressionController that need a framework."""

    def __init__(
        self,
        *,
        zero_loss: Callable[[], Any],
        strip: Callable[[bool], Any],
        export: Callable[..., Any],
        check_export: Callable[[str, str | None], None],
        broadcast: Callable[[], None],
    ) -> None:
        self.zero_loss = zero_loss
        self.strip = strip
        self.export = export
        self.check_export = check_export
        self.broadcast = broadcast
