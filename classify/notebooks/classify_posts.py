# Databricks notebook source
# MAGIC %md
# MAGIC # Classify one landed Posts file
# MAGIC Every question and answer gets a topic, every day its counts: `classify.job`. Its parameters are widgets, or
# MAGIC command-line arguments when this is run as plain Python.

# COMMAND ----------

import sys
from pathlib import Path

databricks = globals().get("dbutils")
here = Path.cwd() if databricks else Path(__file__).resolve().parent  # on Databricks a notebook runs in its own folder
if str(here.parents[1]) not in sys.path:
    sys.path.insert(0, str(here.parents[1]))

from classify.run.engine import run  # noqa: E402 - found by the line above
from classify.run.parameters import JobParameters  # noqa: E402
from shared.services import Services  # noqa: E402

# COMMAND ----------

job = JobParameters.of_notebook(databricks, sys.argv[1:])

# COMMAND ----------

summary = run(Services().lake_at(job.lake_root), job)

# COMMAND ----------

if databricks:
    databricks.notebook.exit(summary.model_dump_json())
