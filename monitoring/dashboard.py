"""The Grafana dashboard of an experiment.

python -m monitoring.dashboard > monitoring/grafana/dashboards/finetune-comparison.json
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

from orchestrator.metrics import PER_TRIAL, TRIALS

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
"""The data source of provisioning/datasources/prometheus.yaml."""

UNITS = {
    "finetune_validation_accuracy": "percentunit",
    "finetune_validation_loss": "none",
    "finetune_train_loss": "none",
    "finetune_examples_per_second": "short",
    "finetune_peak_memory_bytes": "bytes",
}
SELECTED = 'experiment="$experiment", method=~"$method"'
# One series per run, even if another process continued the run.
COUNTS = f"max by (experiment, method, phase, status) (ray_{TRIALS}{{{SELECTED}}} > 0)"


def build() -> dashboard.Dashboard:
    """Describe the dashboard."""
    page = (
        dashboard.Dashboard("Fine-tuning comparison")
        .uid("finetune-comparison")
        .tags(["ray", "finetune-comparison"])
        .refresh("10s")
        .time("now-1h", "now")
        .with_variable(_variable("experiment", f"label_values(ray_{TRIALS}, experiment)"))
        .with_variable(
            _variable("method", f'label_values(ray_{TRIALS}{{experiment="$experiment"}}, method)')
            .multi(True)
            .include_all(True)
            .current(VariableOption(text="All", value="$__all"))
        )
        .with_panel(_best())
        .with_panel(_statuses())
    )
    for name, (description, _) in PER_TRIAL.items():
        page = page.with_panel(_curve(name, description))
    return page


def render() -> str:
    """Write the dashboard as Grafana reads it."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _query(expression: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).ref_id("A")


def _best() -> stat.Panel:
    searched = f'{SELECTED},phase="search"'
    accuracy = f"max_over_time(ray_finetune_validation_accuracy{{{searched}}}[$__range])"
    return (
        stat.Panel()
        .title("Best validation accuracy by method")
        .description("Of the search, within the time range shown.")
        .datasource(SOURCE)
        .unit("percentunit")
        .decimals(1)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_query(f"max by (method) ({accuracy})", "{{method}}").instant())
        .height(8)
        .span(12)
    )


def _statuses() -> timeseries.Panel:
    return (
        timeseries.Panel()
        .title("Trials by status")
        .datasource(SOURCE)
        .unit("short")
        .decimals(0)
        .fill_opacity(30)
        .stacking(StackingConfig().mode(StackingMode.NORMAL))
        .legend(_legend())
        .with_target(_query(f"sum by (status) ({COUNTS})", "{{status}}"))
        .height(8)
        .span(12)
    )


def _curve(name: str, description: str) -> timeseries.Panel:
    title = name.removeprefix("finetune_").replace("_", " ").capitalize()
    return (
        timeseries.Panel()
        .title(title)
        .description(f"{description} Running trials only: a curve ends with its trial.")
        .datasource(SOURCE)
        .unit(UNITS[name])
        .legend(_legend())
        .with_target(_query(f"max by (method, trial) (ray_{name}{{{SELECTED}}})", "{{trial}}"))
        .height(8)
        .span(12)
    )


def _legend() -> VizLegendOptions:
    return (
        VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )


if __name__ == "__main__":
    print(render(), end="")
