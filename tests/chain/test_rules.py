"""The table of rules: what reads it, and that names which cannot be imported from it agree with it."""

import re
from pathlib import Path

from edm.chain.rules import RULES
from edm.params.resolving import RESERVED, TARGETS

ROOT = Path(__file__).parents[2]


def test_every_rule_of_the_table_has_a_rule_in_the_workflow_and_no_other_has():
    text = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    stated = set(re.findall(r"^rule (\w+):", text, flags=re.MULTILINE))
    assert stated | {"download", "made_up"} == set(RULES)  # one rule per file to download or dataset to make up


def test_no_experiment_can_have_the_name_of_a_rule():
    assert {rule.replace("_", "-") for rule in RULES} <= RESERVED


def test_the_stages_that_snakemake_has_targets_of_are_those_of_the_table():
    assert {rule.stage for rule in RULES.values()} == {"data", "tables", *TARGETS} - {"download"}


def test_a_shard_has_the_code_number_of_the_evaluation_that_merges_it():
    assert RULES["shard"].code == RULES["evaluate"].code
