"""The three lines in a loop of one's own, as a process: FOLDER WORKERS [LAST]. Prints each step as it has run."""

import sys

import polcommit

last = int(sys.argv[3]) if len(sys.argv) > 3 else None
run = polcommit.record(sys.argv[1], workers=int(sys.argv[2]))
for batch in run:
    loss = run.step(batch)
    sys.stdout.write(f"{batch.step} {loss}\n")
    sys.stdout.flush()
    if batch.step == last:
        break
run.close()
