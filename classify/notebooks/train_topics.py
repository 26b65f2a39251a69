# Databricks notebook source
# MAGIC %md
# MAGIC # Train a candidate topic model
# MAGIC It becomes the current one only if it is better on held-out posts: `classify.train`. Its parameters are widgets,
# MAGIC or command-line arguments when this is run as plain Python.

# COMMAND ----------

import sys
from pathlib import Path

databricks = globals().get("dbutils")
here = Path.cwd() if databricks else Path(__file__).resolve().parent  # on Databricks a notebook runs in its own folder
if str(here.parents[1]) not in sys.path:
    sys.path.insert(0, str(here.parents[1]))

from classify.learn.train import TrainParameters, train  # noqa: E402 - found by the line above
from shared.services import Services  # noqa: E402

# COMMAND ----------

parameters = TrainParameters.of_notebook(databricks, sys.argv[1:])

# COMMAND ----------

training = train(Services().lake_at(parameters.lake_root), parameters)

# COMMAND ----------

if databricks:
    databricks.notebook.exit(training.model_dump_json())
