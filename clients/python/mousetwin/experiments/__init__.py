"""In-silico experiments: short functions on top of `Mouse.predict`, each returning arrays with named axes.

from mousetwin import experiments

tuning = experiments.grating_tuning(mouse, neurons=[3, 14], behavior=[0, 0, 0])
tuning.preferred("orientation"), tuning.orientation_selectivity, tuning.modulation_ratio
tuning.plot("tuning.png")
"""

from .fields import ReceptiveFields, gradient_fields, receptive_fields
from .ranking import TopImages, top_images
from .results import Experiment
from .stimuli import gabors, gratings
from .sweeps import behavior_sweep, contrast_series, pupil_sweep
from .tuning import GratingTuning, grating_tuning

__all__ = [
    "Experiment",
    "GratingTuning",
    "ReceptiveFields",
    "TopImages",
    "behavior_sweep",
    "contrast_series",
    "gabors",
    "gradient_fields",
    "grating_tuning",
    "gratings",
    "pupil_sweep",
    "receptive_fields",
    "top_images",
]
