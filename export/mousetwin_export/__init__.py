"""From trained SENSORIUM checkpoints to bundles that `mousetwin serve` serves. torch lives here and nowhere else."""
