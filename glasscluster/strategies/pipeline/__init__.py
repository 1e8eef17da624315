"""Pipeline parallelism: the executor, and schedules as data."""
