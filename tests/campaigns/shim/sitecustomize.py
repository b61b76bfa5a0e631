"""Found by way of PYTHONPATH at the start of an interpreter: its system calls are recorded, or one of them fails."""

import failing_calls

failing_calls.install()
