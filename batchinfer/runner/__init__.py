"""The way of a job: plan, ledger, worker processes, supervisor."""
