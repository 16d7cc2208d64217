"""What every page and route is given: the workspace, the jobs, and how the studio was started."""

from __future__ import annotations

from dataclasses import dataclass

from .jobs import Supervisor
from .projects import Workspace


@dataclass
class Studio:
    """One running studio.

    ``has_password`` tells pages whether to offer "log out"; ``start_project`` is the id of the project
    that opens when the address names none ("" means the newest).
    """

    workspace: Workspace
    jobs: Supervisor
    host_is_public: bool = False
    has_password: bool = False
    start_project: str = ""
