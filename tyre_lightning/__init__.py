"""Tell good tyres from defective ones, from the pictures in the plant's data lake."""

__version__ = "0.1.0"

from tyre_lightning.surroundings import drop_empty_variables, have_home

drop_empty_variables()
have_home()
