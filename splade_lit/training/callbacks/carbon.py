"""Energy and emissions of a run, measured by codecarbon."""

import logging
import os
import socket
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
from codecarbon import EmissionsTracker, OfflineEmissionsTracker
from codecarbon.input import DataSource
from codecarbon.output_methods.base_output import BaseOutput
from codecarbon.output_methods.emissions_data import EmissionsData

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import check_range
from splade_lit.runs.emissions import EMISSIONS, Row, Usage, footprint, grown, read_emissions, write_emissions
from splade_lit.training.callbacks.hooks import EveryNSteps
from splade_lit.training.callbacks.loggers import log_figures
from splade_lit.training.callbacks.phases import PhaseCallback

logger = logging.getLogger(__name__)

_LOCATION_SERVICE = "get.geojs.io"
_PATIENCE = 2.0


class CarbonTracker(PhaseCallback):
    """Measures the energy that a run uses and its emissions, training and evaluation apart.

    `emissions.csv` in the folder of the run has codecarbon's columns and a row for each stage (`training`,
    `evaluation`) of each start of the run; it is written every time that figures are logged, and where a run stops
    early too. Logged are, each `log_every_n_steps` of the trainer and at the end, `carbon/energy_kwh` and
    `carbon/emissions_g` since the row before, and both with `_total` of the whole run, earlier starts included, and
    with `_training` and `_evaluation`, its parts.

    The first process of a run counts its whole machine; of further machines nothing is counted.

    Args:
        country_iso_code: three letters of the country whose electricity is used, such as DEU; nothing is then asked of
            the network. If not given, it is that of the environment variable CODECARBON_COUNTRY_ISO_CODE; without
            that, codecarbon asks a service where the machine is, or, offline, counts with the world's average.
        tracking_mode: `machine` counts all of the machine's processor and memory, `process` the share of this process.
        measure_power_secs: seconds between two measurements.

    Raises:
        UserError: codecarbon knows no such country, or `measure_power_secs` is below 0.01.
    """

    def __init__(
        self,
        country_iso_code: str | None = None,
        tracking_mode: Literal["machine", "process"] = "machine",
        measure_power_secs: float = 15.0,
    ) -> None:
        country = country_iso_code or os.environ.get("CODECARBON_COUNTRY_ISO_CODE")
        if country is not None and country not in DataSource().get_global_energy_mix_data():
            raise UserError(f"CarbonTracker: no country {country!r} is known; give three letters, such as DEU.")
        check_range("CarbonTracker", 0.01, measure_power_secs=measure_power_secs)
        self.country_iso_code = country
        self.tracking_mode = tracking_mode
        self.measure_power_secs = measure_power_secs
        self._rows: dict[tuple[str, str], Row] = {}
        self._reading = _Reading()
        self._before: Row | None = None
        self._logged = self._row_start = (0.0, 0.0)
        self._row_step: int | None = None
        self._tracker: EmissionsTracker | OfflineEmissionsTracker | None = None
        self._may_write = False
        self._first_step: int | None = None
        self._timing = EveryNSteps(None)

    @property
    def rows(self) -> list[Row]:
        """The rows of emissions.csv."""
        return list(self._rows.values())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the tracker, before anything that takes time."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        if trainer.num_nodes > 1:
            logger.warning("CarbonTracker counts one of the %d machines of this run.", trainer.num_nodes)
        self._logged = self._totals()
        self._timing = EveryNSteps(trainer.log_every_n_steps or None)  # type: ignore[attr-defined]
        self._reading.total = None
        self._tracker = self._make_tracker(trainer)
        self._tracker.start()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on the folder is that of this run, and the rows of a checkpoint are loaded."""
        self._may_write = trainer.is_global_zero

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take note of where this start begins."""
        self._first_step = trainer.global_step

    def on_phase_end(self, trainer: L.Trainer) -> None:
        """Add what was used so far to the stage that ends."""
        self._may_write = self._tracker is not None  # others may evaluate in their on_fit_start, before ours
        self._read()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Log, as often as the trainer does."""
        if self._tracker is not None and self._timing.due(trainer):
            self._log(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the tracker."""
        self.finish(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop the tracker and write what the run has used."""
        self.finish(trainer)

    def finish(self, trainer: L.Trainer) -> None:
        """Read, log and write for the last time, and stop the tracker; nothing if that is done already."""
        if self._tracker is None:
            return
        self._log(trainer)
        self._tracker.stop()
        self._tracker = None
        self._before = None
        self._may_write = False
        self._first_step = self._row_step = None

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        self._read()
        return {"rows": self.rows}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from emissions.csv, which may be later than the checkpoint; Lightning loads our own state next."""
        self._add_rows(read_emissions(self._path(trainer)))
        self._logged = self._totals()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of a checkpoint; rows of the same start in emissions.csv are later and replace them."""
        later = self.rows
        self._rows = {}
        self._add_rows(state_dict["rows"])
        self._add_rows(later)
        self._logged = self._totals()

    def _add_rows(self, rows: list[Row]) -> None:
        self._rows |= {(row["run_id"], row["stage"]): row for row in rows}

    def _make_tracker(self, trainer: L.Trainer) -> EmissionsTracker | OfflineEmissionsTracker:
        # codecarbon logs much about the machine, part of it before it has read its own log_level.
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        settings: dict[str, Any] = {
            "project_name": Path(trainer.default_root_dir).name or "splade_lit",
            "output_methods": [],
            "output_handlers": [self._reading],
            "tracking_mode": self.tracking_mode,
            "measure_power_secs": self.measure_power_secs,
            "log_level": "error",
            "allow_multiple_runs": True,
        }
        if not os.environ.get("CUDA_VISIBLE_DEVICES"):  # codecarbon goes by it
            settings["gpu_ids"] = [str(index) for index in _gpus(trainer)]
        if self.country_iso_code is not None:
            return OfflineEmissionsTracker(country_iso_code=self.country_iso_code, **settings)
        if _is_offline():
            logger.info("CarbonTracker: no network and no country_iso_code; counting with the world's average.")
            return OfflineEmissionsTracker(**settings)
        return EmissionsTracker(**settings)

    def _read(self) -> None:
        if self._tracker is None:
            return
        self._tracker.flush()
        if (total := self._reading.total) is None:
            return
        now = asdict(total)
        key = (now["run_id"], self.phase)
        self._rows[key] = grown(self._rows.get(key), self.phase, self._before, now)
        self._before = now

    def _log(self, trainer: L.Trainer) -> None:
        self._read()
        if not self._may_write or not self._rows:
            return
        write_emissions(self._path(trainer), self.rows)
        if self._first_step is None or trainer.global_step == self._first_step:
            return  # no step yet, so the row of the log is that of an earlier start
        energy, emissions = self._totals()
        if trainer.global_step != self._row_step:  # the row of the last step is written twice
            self._row_step, self._row_start = trainer.global_step, self._logged
        figures = {
            "carbon/energy_kwh": energy - self._row_start[0],
            "carbon/emissions_g": emissions - self._row_start[1],
            "carbon/energy_kwh_total": energy,
            "carbon/emissions_g_total": emissions,
        }
        for stage, usage in self._stages().items():
            figures |= {
                f"carbon/energy_kwh_{stage}": usage.energy_kwh,
                f"carbon/emissions_g_{stage}": 1000 * usage.emissions_kg,
            }
        log_figures(trainer, figures)
        self._logged = (energy, emissions)

    def _stages(self) -> dict[str, Usage]:
        used = footprint(self.rows)
        return used.stages if used else {}

    def _totals(self) -> tuple[float, float]:
        stages = self._stages().values()
        return sum(stage.energy_kwh for stage in stages), 1000 * sum(stage.emissions_kg for stage in stages)

    @staticmethod
    def _path(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / EMISSIONS


class _Reading(BaseOutput):
    """Keeps what a tracker has measured since its start."""

    def __init__(self) -> None:
        self.total: EmissionsData | None = None

    def out(self, total: EmissionsData, delta: EmissionsData) -> None:
        self.total = total


def _gpus(trainer: L.Trainer) -> list[int]:
    return list(trainer.device_ids) if trainer.strategy.root_device.type == "cuda" else []


def _is_offline() -> bool:
    """Whether the network is switched off by the environment or does not answer soon."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    answered = threading.Event()

    def ask() -> None:
        try:
            socket.create_connection((_LOCATION_SERVICE, 443), timeout=_PATIENCE).close()
            answered.set()
        except OSError:
            pass

    asking = threading.Thread(target=ask, daemon=True)  # looking a name up obeys no time limit
    asking.start()
    asking.join(_PATIENCE)
    return not answered.is_set()
