"""The load test: arrivals and workloads, requests and their times, statistics, reports.

`session` runs a plan and returns a `document.Document`; `sigmoe/cli/loadtest.py` is its command line. Standard library
and pydantic only. All times are seconds; those of a level count from its beginning.
"""
