"""For all tests: torch's threads wait politely, for the machine is often shared."""

import os

from polcommit.session.processes import PATIENT

os.environ.setdefault(*PATIENT)
