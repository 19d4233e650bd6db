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
from splade_lit.training.callbacks.hooks import EveryNSteps, PhaseCallback
from splade_lit.training.callbacks.loggers import log_figures

logger = logging.getLogger(__name__)

_LOCATION_SERVICE = "get.geojs.io"
_PATIENCE = 2.0


class CarbonTracker(PhaseCallback, BaseOutput):
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
        self._tracker: EmissionsTracker | OfflineEmissionsTracker | None = None
        self._timing = EveryNSteps()
        self._may_write = False
        self._first_step: int | None = None
        # Step of the last row of the log, and what had been used when it was begun and when it was written.
        self._row_step: int | None = None
        self._row_start = self._logged = (0.0, 0.0)

    @property
    def rows(self) -> list[Row]:
        """The rows of emissions.csv."""
        return list(self._rows.values())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the tracker, before anything that takes time."""
        self._path = Path(trainer.default_root_dir) / EMISSIONS
        if stage != "fit" or not trainer.is_global_zero:
            return
        if trainer.num_nodes > 1:
            logger.warning("CarbonTracker counts one of the %d machines of this run.", trainer.num_nodes)
        self._may_write = False
        self._first_step = self._row_step = None
        self._timing = EveryNSteps(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        self._tracker = self._make_tracker(trainer)
        self._tracker.start()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on the folder is that of this run, and the rows of a checkpoint are loaded."""
        self._may_write = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take note of where this start begins."""
        self._first_step = trainer.global_step
        self._timing.begin(trainer)

    def on_phase_end(self, trainer: L.Trainer) -> None:
        """Add what was used so far to the stage that ends."""
        self._may_write = True  # others may evaluate in their on_fit_start, before ours
        self._read()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Log, as often as the trainer does."""
        if self._tracker is not None and self._timing.due(trainer):
            self._read()
            self._log(trainer)

    def finish(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop the tracker, log and write for the last time; nothing if that is done already."""
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None
            self._log(trainer)

    on_fit_end = on_exception = finish

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        self._read()
        return {"rows": self.rows}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from emissions.csv, which may be later than the checkpoint; Lightning loads our own state next."""
        self._set_rows([*self.rows, *read_emissions(self._path)])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of a checkpoint; rows of the same start in emissions.csv are later and replace them."""
        self._set_rows([*state_dict["rows"], *self.rows])

    def out(self, total: EmissionsData, delta: EmissionsData) -> None:
        """Called by the tracker: add what was used since its last call to the stage that goes on."""
        key = delta.run_id, self.phase
        self._rows[key] = grown(self._rows.get(key), self.phase, asdict(delta))

    def _read(self) -> None:
        if self._tracker is not None:
            self._tracker.flush()

    def _set_rows(self, rows: list[Row]) -> None:
        self._rows = {(row["run_id"], row["stage"]): row for row in rows}
        used = footprint(self.rows)
        self._logged = _energy_and_emissions(used.total) if used else (0.0, 0.0)

    def _log(self, trainer: L.Trainer) -> None:
        used = footprint(self.rows)
        if not self._may_write or used is None:
            return
        write_emissions(self._path, self.rows)
        if self._first_step is None or trainer.global_step == self._first_step:
            return  # no step yet, so the row of the log is that of an earlier start
        if trainer.global_step != self._row_step:  # the row of the last step is written twice
            self._row_step, self._row_start = trainer.global_step, self._logged
        self._logged = _energy_and_emissions(used.total)
        since = tuple(now - start for now, start in zip(self._logged, self._row_start, strict=True))
        stages = {f"_{stage}": _energy_and_emissions(usage) for stage, usage in used.stages.items()}
        figures = {"": since, "_total": self._logged, **stages}
        names = ("carbon/energy_kwh", "carbon/emissions_g")
        log_figures(
            trainer,
            {f"{name}{part}": value for part, both in figures.items() for name, value in zip(names, both, strict=True)},
        )

    def _make_tracker(self, trainer: L.Trainer) -> EmissionsTracker | OfflineEmissionsTracker:
        # codecarbon logs much about the machine, part of it before it has read its own log_level.
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        settings: dict[str, Any] = {
            "project_name": Path(trainer.default_root_dir).name or "splade_lit",
            "output_methods": [],
            "output_handlers": [self],
            "api_call_interval": -1,  # nothing but `flush` and `stop` calls `out`
            "tracking_mode": self.tracking_mode,
            "measure_power_secs": self.measure_power_secs,
            "log_level": "error",
            "allow_multiple_runs": True,
        }
        if not os.environ.get("CUDA_VISIBLE_DEVICES"):  # codecarbon goes by it
            on_gpu = trainer.strategy.root_device.type == "cuda"
            settings["gpu_ids"] = [str(index) for index in trainer.device_ids] if on_gpu else []
        if self.country_iso_code is not None:
            return OfflineEmissionsTracker(country_iso_code=self.country_iso_code, **settings)
        if _is_offline():
            logger.info("CarbonTracker: no network and no country_iso_code; counting with the world's average.")
            return OfflineEmissionsTracker(**settings)
        return EmissionsTracker(**settings)


def _energy_and_emissions(usage: Usage) -> tuple[float, float]:
    """Energy in kWh, emissions in g."""
    return usage.energy_kwh, 1000 * usage.emissions_kg


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
