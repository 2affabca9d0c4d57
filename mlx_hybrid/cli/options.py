"""Options that several commands share."""

import click

base_model_option = click.option(
    "--base-model", metavar="MODEL", help="Put the adapter on this base.  [default: the one it names]"
)
calibrated_option = click.option(
    "--calibrated", is_flag=True, help="Sample at the temperature `evaluate --save-temperature` fitted."
)
