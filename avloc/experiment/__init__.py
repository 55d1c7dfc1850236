"""An experiment: one YAML, found by name, run by LightningCLI."""
