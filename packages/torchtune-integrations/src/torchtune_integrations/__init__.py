"""Optional plug-ins for torchtune; each needs its extra."""

__version__ = "0.1.0"
