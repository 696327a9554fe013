"""What it costs beside its peers and beside the limit, every figure a ratio taken within one run.

A suite is a room that yields :class:`~benchmarks.record.Row` after row: ``peers`` (other libraries),
``limit`` (the plain forward pass, counted multiply-adds), ``scaling`` and ``convert``. ``clock``
measures, ``subjects`` are what is measured, ``libraries`` are the peers' calls; ``record`` keeps
rows, ``tables`` and ``plots`` show them, ``goals`` say what they ought to be, and ``speed`` is the
section of the README made of them. ``keras_apps`` is a proof and no race.
"""

import os

# Processes that wanted to run, on average over the minute before: 0 on an idle machine. Looked at
# first of all, as importing torch is work too, and later it would tell of what is measured.
LOAD = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None

# torch's profiler, which measures memory on the CPU, else tells of every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
