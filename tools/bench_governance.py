"""Measure data governance on real text with planted faults, and print the tables of docs/governance.md.

    python tools/bench_governance.py                 all tables, about ten minutes on two cores
    python tools/bench_governance.py language near   some of them

Rates are by processor time, so that other work on the machine does not count; the whole pass is by the clock.
Needs the development data (MLX_HYBRID_DATA, else ../shared/data). `near` compares with datasketch where it is
installed.
"""

import sys

from governance_tables.families import families
from governance_tables.faults import quality
from governance_tables.languages import language
from governance_tables.leaks import overlap, parallel
from governance_tables.near import near, near_small
from governance_tables.whole import linear, million, whole

USUAL = (language, near, quality, families, overlap, parallel, whole)
TABLES = {table.__name__: table for table in (*USUAL, near_small, linear, million)}


if __name__ == "__main__":
    for table in [TABLES[word] for word in sys.argv[1:] if word != "-v"] or USUAL:
        table()
