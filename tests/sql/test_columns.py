"""The documented schema of results.duckdb: what each query answers with, and that nothing in it goes without a word."""

from pathlib import Path

import pytest

from pipeline.dictionary import COLUMNS, TABLES, meaning
from pipeline.results import MARTS, build_results, query, query_names
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import SQL, sql_text
from tests.published import demo_tables, publish
from tests.sql.test_queries import PARAMS

ANSWERS = {  # query → its columns, in their order
    "agreement": "first_leg first_setting second_leg second_setting agents tau p_value opposed sentence",
    "agreement_rows": "first_leg first_setting second_leg second_setting agent first_metric first_value first_low "
    "first_high second_metric second_value second_low second_high tau",
    "calibration_rows": "bin session_id step slot candidate predicted observed",
    "column_scores": "agent unit user_key value",
    "comparisons": "agent against control leg setting metric value against_value difference difference_low "
    "difference_high effect_size share_better p_value p_adjusted better family n users seeds seed_low seed_high",
    "coverage_rows": "setting agent seed item item_id title items_known",
    "data_by_period": "period subject name n",
    "data_cold_start": "name value instant",
    "data_coverage": "event_type session_id request_id position propensity value",
    "data_feedback": "feedback impressions share",
    "data_overview": "section name value instant",
    "data_popularity": "kind top_1_percent_share top_10_percent_share gini",
    "data_recomputed": "section name bucket n_rows recomputed published error",
    "data_rows": "subject name first_ts user_key item_id session_id",
    "data_session_lengths": "measure length sessions share",
    "data_spread": "measure mean lowest p10 p25 median p75 p90 p99 highest",
    "decoding": "setting decoder users return depth share_of_lookahead",
    "dictionary": "relation kind holds name type meaning",
    "difference_rows": "leg setting metric agent against session_id user_key page seeds value against_value difference",
    "events_by_day": "event_date event_type events",
    "gate_recomputed": "simulator head figure group bin number n_rows n recomputed published error",
    "gate_rows": "simulator head session_id row group predicted observed base_rate popularity members_mean "
    "members_spread logged_pages simulated_pages logged_ended simulated_ended logged_rate simulated_rate",
    "gate_twins_recomputed": "simulator criterion number n_rows n recomputed published error",
    "ingest_rows": "path rows_in unpacked events duplicates rejects left_out",
    "leaderboard": "agent leg setting metric value ci_low ci_high n users seeds against difference difference_low "
    "difference_high p_value",
    "learning_curves": "agent metric step value lowest highest seeds",
    "length_rows": "measure session_id user_key item_id length earlier",
    "lineage": "agent leg setting metric value data_hash code_hash config_hash commit versions path kind hash size "
    "rows",
    "off_policy": "agent setting estimator value ci_low ci_high gain gain_low gain_high n users seeds ess tail_index "
    "max_weight mean_weight mean_weight_error clipped_share overlap supported reason temperature propensities pool",
    "ope_proof": "claim setting estimator target n logs truth value least most holds",
    "ope_proof_recomputed": "claim setting estimator target estimates recomputed value error",
    "ope_proof_rows": "claim setting estimator target ranker n log truth value ci_low ci_high supported",
    "ope_recomputed": "setting agent seed estimator n recomputed value error supported",
    "ope_rows": "agent seed session_id user_key step slot reward behaviour target ratio behaviour_marginal "
    "target_marginal slot_weight q_logged v_target fqe_weight overlap",
    "paired_difference": "leg setting metric value_a value_b difference difference_low difference_high standard_error "
    "share_better share_worse n users",
    "pareto": "setting agent goal users seeds clicks clicks_low clicks_high purchases purchases_low purchases_high "
    "depth depth_low depth_high return return_low return_high on_front",
    "provenance": "agent leg setting metric value n seeds data_hash code_hash config_hash commit versions",
    "reject_rows": "file line raw reason",
    "rejects_by_reason": "reason n_rows files",
    "rollouts": "setting agent episodes seeds return ci_low ci_high return_variance depth ctr purchases "
    "predicted_return discounted_return overestimation catalogue_coverage diversity repeat_rate out_of_support "
    "disagreement",
    "rows_behind": "leg setting metric agent seed session_id user_key page value",
    "scored_rows": "session_id user_key candidates positives status",
    "seed_variance": "agent leg setting metric seeds lowest highest seed_sd user_half_width ratio",
    "sessions_scored": "mode sessions scored no_positive all_positive",
    "simulator_drop": "sessions agent train_simulator train_value judge_simulator judge_value relative_drop",
    "simulator_error": "simulator side passed_gate agent value true_value error relative_error rank_in_simulator "
    "true_rank",
    "simulator_gate": "simulator side head criterion value reference passed n",
    "slice_rows": "agent mode dimension slice metric session_id item_key user_key value",
    "slices": "agent mode dimension slice metric value ci_low ci_high ndcg_reward_20 n users",
    "split_rows": "split session_id user_key start_ts end_ts dropped usable",
    "training_rows": "agent seed step metric value",
    "trend": "published_at agent leg setting metric value ci_low ci_high n change changed commit leaderboard",
    "trials": "agent trial validation best_step steps seconds chosen",
    "validation_rows": "agent trial seed step session_id value",
    "verdicts": "place verdict subject holds headline reason",
    "ways_back": "part number query arguments",
    "worst_sessions": "session_id user_key start_ts candidates positives ndcg_reward_20 reference "
    "reference_ndcg_reward_20 difference",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    build_results(publish(folder / "data", demo_tables()), folder / "results.duckdb")
    return folder / "results.duckdb"


@pytest.mark.parametrize("name", query_names())
def test_a_query_answers_with_its_declared_columns(results: Path, name: str) -> None:
    assert " ".join(query(results, name, PARAMS.get(name)).column_names) == ANSWERS.get(name)


@pytest.mark.parametrize("name", [*(f"queries/{name}" for name in query_names()), *MARTS])
def test_a_select_says_what_it_is_for(name: str) -> None:
    assert sql_text(name).startswith("-- ")


def test_the_dictionary_names_every_table_and_mart_and_the_meaning_of_every_column(results: Path) -> None:
    rows = query(results, "dictionary").to_pylist()
    assert {row["relation"] for row in rows} == {*SCHEMAS, *(mart.removeprefix("marts/") for mart in MARTS)}
    assert [(row["relation"], row["name"]) for row in rows if not row["meaning"] or not row["holds"]] == []
    views = {row["relation"] for row in rows if row["kind"] == "view"}
    assert {"events", "scores"} <= views
    assert "leaderboard" not in views


def test_every_select_under_marts_is_published() -> None:
    assert {f"marts/{path.stem}" for path in (SQL / "marts").glob("*.sql")} == set(MARTS)


def test_the_comments_of_schemas_py_are_the_first_to_say_what_a_column_means() -> None:
    assert meaning("splits", "dropped") == "sessions that start in it and cross its end"
    assert meaning("rollout", "diversity") == "1 - mean cosine between the items of a page"
    assert meaning("decisions", "page_items") == "earlier pages of the session, flattened, newest last"
    assert meaning("training_log", "step") == "gradient step"  # its own word comes before that of all others
    assert meaning("decisions", "step") == "page of the session, from 0"
    assert meaning("splits", "nothing") is None


def test_the_dictionary_explains_nothing_that_is_not_there(results: Path) -> None:
    rows = query(results, "dictionary").to_pylist()
    names = {row["name"] for row in rows} | {f"{row['relation']}.{row['name']}" for row in rows}
    assert set(COLUMNS) <= names
    assert set(TABLES) == set(SCHEMAS)
