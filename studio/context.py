"""What every page and route is given: workspace, jobs, uploads, and how the studio was started."""

from __future__ import annotations

from dataclasses import dataclass, field

from .jobs import Supervisor
from .projects import Workspace
from .uploads import Uploads


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
    uploads: Uploads = field(init=False)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.workspace.root / ".uploads")
