"""Published claims: which numbers hold for which settings, and what cannot be claimed."""

import pytest

from kd import claims
from kd.errors import ConfigError
from kd.schema import ClaimConfig, ClaimRowConfig, ComparisonConfig
from tests.commands import configured

ARM = {
    "test": {"accuracy": 0.9, "errors": 100, "nll": 0.5, "ece": 0.1},
    "correction": {
        "before": {"omitted_accuracy": 0.25, "omitted_errors": 75, "omitted_n": 100},
        "rules": {"fixed": {"accuracy": 0.95, "errors": 50, "omitted_accuracy": 0.8, "omitted_errors": 20}},
    },
}


@pytest.fixture(scope="module")
def config():
    return configured()


def claim(**given):
    return ClaimConfig(source="a paper", statement="it helps", **given)


def test_every_metric_is_read_where_result_json_has_it():
    found = {metric: claims.measure(ARM, metric) for metric in claims.METRICS}
    assert found == {
        "accuracy": 0.9, "errors": 100, "nll": 0.5, "ece": 0.1, "omitted_accuracy": 0.25, "omitted_errors": 75,
        "corrected_accuracy": 0.95, "corrected_errors": 50, "corrected_omitted_accuracy": 0.8,
        "corrected_omitted_errors": 20,
    }  # fmt: skip


@pytest.mark.parametrize("arm", [{**ARM, "correction": None}, {"test": ARM["test"]}])
def test_without_an_omission_its_metrics_have_no_value(arm):
    assert claims.measure(arm, "omitted_accuracy") is None
    assert claims.measure(arm, "corrected_errors") is None


def test_without_the_fixed_rule_nothing_is_corrected():
    arm = {**ARM, "correction": {**ARM["correction"], "rules": {"prior": {"accuracy": 0.95}}}}
    assert claims.measure(arm, "corrected_accuracy") is None


def test_a_row_holds_only_for_its_settings(config):
    rows = [
        ClaimRowConfig({"method.temperature": 4.0, "seed": 0}, {"student": {"accuracy": 0.7}}),
        ClaimRowConfig({"method.temperature": 8.0}, {"student": {"accuracy": 0.6}}),
        ClaimRowConfig({"data.nonsense.deeper": 1}, {"student": {"accuracy": 0.5}}),
    ]
    given = claim(published={"baseline": {"errors": 9}}, rows=rows)
    assert config.method.temperature == 4
    assert claims.published(given, config) == {"baseline": {"errors": 9}, "student": {"accuracy": 0.7}}
    assert given.published == {"baseline": {"errors": 9}}, "the configuration stays as it is"


@pytest.mark.parametrize(("method", "kept"), [("kd", True), (None, True), ("rkd", False)])
def test_another_method_than_the_claims_has_no_published_student(config, method, kept):
    given = claim(method=method, published={"teacher": {"errors": 1}, "student": {"errors": 2}})
    assert ("student" in claims.published(given, config)) is kept
    assert "teacher" in claims.published(given, config)


def test_the_block_has_the_same_numbers_of_the_run_and_a_comparison(config):
    given = claim(published={"student": {"errors": 74, "corrected_errors": 40}, "teacher": {"errors": 67}})
    block = claims.block(given, config, {"student": ARM})
    assert block["measured"] == {"student": {"errors": 100, "corrected_errors": 50}}
    assert block["comparisons"]["helps"]["minus"] == "baseline"
    assert claims.block(None, config, {"student": ARM}) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"published": {"pupil": {"errors": 1}}}, "Unknown arm in `claim.published` 'pupil'"),
        ({"published": {"student": {"error": 1}}}, "Did you mean 'errors'"),
        ({"published": {"student": {"errors": "few"}}}, "`claim.published.student.errors`"),
        ({"published": {"student": {"accuracy": 98.7}}}, r"in \[0, 1\], but got 98.7"),
        ({"rows": [ClaimRowConfig({}, {})]}, "needs `when`"),
        ({"rows": [ClaimRowConfig({"method.temprature": 4}, {})]}, "no 'temprature'"),
        ({"rows": [ClaimRowConfig({"seed": 1}, {"x": {}})]}, "Unknown arm in `claim.rows`"),
        ({"comparisons": {"c": ComparisonConfig("s", metric="errors")}}, "Unknown metric in `claim.comparisons.c`"),
        ({"comparisons": {"c": ComparisonConfig("s", arm="x")}}, "Unknown arm in `claim.comparisons.c`"),
        ({"comparisons": {"c": ComparisonConfig("s", minus="student")}}, "with itself"),
        ({"comparisons": {"c": ComparisonConfig("s", versus=["seed=3"])}}, "'seed=3', but pairs have one seed"),
    ],
)
def test_an_impossible_claim_is_refused(config, given, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        claims.check(claim(**given), config)


def test_the_same_arm_of_another_run_can_be_compared(config):
    versus = ComparisonConfig("small T is best", minus="student", versus=["method.temperature=20"])
    claims.check(claim(comparisons={"small": versus}), config)
