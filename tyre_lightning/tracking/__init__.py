from pathlib import Path


def served_model_path() -> Path:
    """The file that MLflow runs to load a registered model; importing it would run it, so it is known by its path."""
    return Path(__file__).parent / "served_model.py"
