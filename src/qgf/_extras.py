"""What only some commands need, and the extra of the package that installs it."""

from qgf.errors import UserError

EXTRAS = {
    "ogbench": ("ogbench", "mujoco"),
    "ray": ("ray",),
    "torch": ("torch",),
    "plots": ("matplotlib", "imageio_ffmpeg", "PIL"),
}


def absent(error: ModuleNotFoundError) -> UserError | None:
    """Return what to say of a module that is not installed; None if no extra has it."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return UserError(f"this needs {package}; install it with: pip install 'qgf[{extra}]'")
    return None
