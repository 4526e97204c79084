"""Every experiment of the folder: that it is the published one, with the published numbers beside it."""

import functools
import inspect

import pytest
import torch
from hydra.utils import get_object, instantiate

from kd import claims, cli
from kd.nets.cost import parameters
from kd.rules import check
from kd.schema import RunConfig

CONF = cli.conf_dir()
NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if not path.stem.startswith("_"))
OURS = ("digits_kd", "cifar_small")  # of nobody's: no claim
PLAIN_PAIR = ("model@student=cnn3_w12", "model@teacher.model=cnn3_w32")
LARGE_SELF = ("model@student=resnet18_cifar",)


def final_layer(*more: str) -> tuple[str, ...]:
    return ("method.initial.terms.hint.student=final", "method.initial.terms.hint.teacher=final", *more)


def grid(temperature: float, alpha: float) -> tuple[str, ...]:
    return (f"method.temperature={temperature}", f"method.alpha={alpha}")


#: what was published, by experiment and the settings it was published for
PUBLISHED: dict[tuple[str, ...], dict] = {
    ("mnist_hinton",): {"teacher": {"errors": 67}, "baseline": {"errors": 146}, "student": {"errors": 74}},
    ("mnist_hinton", "method.temperature=4"): {"teacher": {"errors": 67}, "baseline": {"errors": 146}},
    ("mnist_hinton", "method=rkd"): {"teacher": {"errors": 67}, "baseline": {"errors": 146}},
    ("mnist_omit3",): {
        "student": {
            "errors": 206,
            "omitted_errors": 133,
            "omitted_accuracy": 0.868,
            "corrected_errors": 109,
            "corrected_omitted_errors": 14,
            "corrected_omitted_accuracy": 0.986,
        }
    },
    ("mnist_omit3", "data.omit=[4]"): {},
    ("mnist_only78",): {"student": {"accuracy": 0.527, "corrected_accuracy": 0.868}},
    ("mnist_small_t",): {},
    ("mnist_kd",): {"teacher": {"accuracy": 0.9877}, "baseline": {"accuracy": 0.9873}, "student": {"accuracy": 0.99}},
    ("mnist_kd", "method.temperature=4"): {
        "teacher": {"accuracy": 0.9877},
        "baseline": {"accuracy": 0.9873},
        "student": {"accuracy": 0.9897},
    },
    ("mnist_omit3_duke",): {
        "baseline": {"omitted_accuracy": 0.0, "accuracy": 0.886},
        "student": {"corrected_omitted_accuracy": 0.9574, "corrected_accuracy": 0.9663},
    },
    ("mnist_omit3_duke_teacher",): {},
    ("cifar_kd",): {"teacher": {"accuracy": 0.849}, "baseline": {"accuracy": 0.835}, "student": {"accuracy": 0.827}},
    ("cifar_kd", "method.temperature=2"): {"teacher": {"accuracy": 0.849}, "baseline": {"accuracy": 0.835}},
    ("cifar_omit7",): {
        "baseline": {"omitted_accuracy": 0.0},
        "student": {"corrected_omitted_accuracy": 0.765},
    },
    ("cifar_reversed",): {
        "teacher": {"accuracy": 0.8823},
        "baseline": {"accuracy": 0.9023},
        "student": {"accuracy": 0.9126},
    },
    ("cifar_selfkd",): {
        "teacher": {"accuracy": 0.8823},
        "baseline": {"accuracy": 0.8823},
        "student": {"accuracy": 0.8823 + 0.0298},
    },
    ("cifar_selfkd", *LARGE_SELF): {
        "teacher": {"accuracy": 0.9023},
        "baseline": {"accuracy": 0.9023},
        "student": {"accuracy": 0.9023 + 0.01},
    },
    **{
        ("cifar_resnet", *grid(*setting)): {
            "teacher": {"accuracy": 0.91},
            "baseline": {"accuracy": 0.82},
            "student": {"accuracy": accuracy},
        }
        for setting, accuracy in {(10, 0.2): 0.8456, (20, 0.5): 0.8391, (5, 0.2): 0.8534, (40, 0.7): 0.8427}.items()
    },
    **{
        ("cifar_novel", *grid(*setting)): {
            "teacher": {"accuracy": 0.75},
            "baseline": {"accuracy": 0.63},
            "student": {"accuracy": accuracy},
        }
        for setting, accuracy in {(10, 0.2): 0.6597, (20, 0.5): 0.6347, (5, 0.2): 0.6721, (40, 0.7): 0.6413}.items()
    },
    **{
        ("cifar_fitnets", *settings): {
            "teacher": {"accuracy": teacher},
            "baseline": {"accuracy": baseline},
            "student": {"accuracy": student},
        }
        for settings, teacher, baseline, student in [
            ((), 0.91, 0.82, 0.8557),
            (final_layer(), 0.91, 0.82, 0.7686),
            (PLAIN_PAIR, 0.75, 0.63, 0.6836),
            (final_layer(*PLAIN_PAIR), 0.75, 0.63, 0.5406),
        ]
    },
    ("cifar_rkd",): {},
    ("cifar_soft_mix",): {"teacher": {"accuracy": 0.9422}},
    ("cifar_distiller",): {},
}
#: the parameters of the published networks: student, teacher
PAIRS = {
    **dict.fromkeys(("mnist_hinton", "mnist_omit3", "mnist_only78"), (1_276_810, 2_395_210)),
    **dict.fromkeys(("mnist_kd", "mnist_omit3_duke", "mnist_omit3_duke_teacher"), (1_276_810, 2_395_210)),
    "mnist_small_t": (24_790, 2_395_210),
    **dict.fromkeys(("cifar_kd", "cifar_omit7", "cifar_distiller"), (896_522, 21_289_802)),
    "cifar_reversed": (11_173_962, 9_416_010),
    "cifar_selfkd": (9_416_010, 9_416_010),
    **dict.fromkeys(("cifar_resnet", "cifar_fitnets", "cifar_rkd"), (272_474, 1_730_714)),
    "cifar_novel": (32_074, 356_810),
    "cifar_soft_mix": (896_522, 28_334_410),
}


@functools.cache
def configured(*arguments: str) -> RunConfig:
    """The checked configuration of `experiment=` and more."""
    experiment, *overrides = arguments
    return check(cli.compose([f"experiment={experiment}", *overrides]))


def size(model: dict, mnist: bool) -> int:
    arguments = {name: value for name, value in model.items() if name != "taps"}
    known = inspect.signature(get_object(model["_target_"])).parameters
    facts = {"num_classes": 10, "image_shape": (1, 28, 28) if mnist else (3, 32, 32)}
    with torch.device("meta"):
        return parameters(instantiate(arguments, **{name: value for name, value in facts.items() if name in known}))


def test_every_published_row_is_an_experiment():
    assert set(NAMES) == {name for name, *_ in PUBLISHED} | set(OURS)
    assert set(PAIRS) | set(OURS) == set(NAMES)


@pytest.mark.parametrize("arguments", PUBLISHED, ids=" ".join)
def test_the_published_numbers_are_beside_it(arguments):
    config = configured(*arguments)
    found = claims.published(config.claim, config)
    assert found.keys() == PUBLISHED[arguments].keys()
    for arm, metrics in PUBLISHED[arguments].items():
        assert found[arm] == pytest.approx(metrics)


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_has_a_source_a_statement_and_hypotheses(name):
    config = configured(name)
    if name in OURS:
        assert config.claim is None
        return
    assert config.claim.source and config.claim.statement
    assert config.claim.method == config.method.name
    assert config.claim.comparisons
    for comparison in config.claim.comparisons.values():
        assert comparison.statement
        assert comparison.metric in claims.SHARES
        assert comparison.arm in claims.ARMS and comparison.minus in claims.ARMS
        if comparison.metric != "accuracy":
            assert config.data["omit"] or config.data["keep"]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OURS])
def test_what_a_hypothesis_compares_with_can_be_run(name):
    for comparison in configured(name).claim.comparisons.values():
        if comparison.versus:
            other = configured(name, *comparison.versus)
            if comparison.arm == comparison.minus:
                assert other != configured(name)


@pytest.mark.parametrize("name", PAIRS)
def test_networks_have_the_published_parameters(name):
    config = configured(name)
    mnist = name.startswith("mnist")
    assert (size(config.student, mnist), size(config.teacher.model, mnist)) == PAIRS[name]


@pytest.mark.parametrize("name", NAMES)
def test_temperature_and_alpha_lie_in_the_settings_of_its_method(name):
    """So that an experiment can be run with another method, which may have neither."""
    method = configured(name).method
    file = CONF / "setting" / name / f"{method.name}.yaml"
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert "\nmethod:" not in text
    if method.temperature is not None and name != "cifar_small":
        assert file.is_file()
        assert "T and " in file.read_text().splitlines()[0]
    assert configured(name, "method=rkd").method.temperature is None


def test_settings_belong_to_experiments_and_methods():
    for file in (CONF / "setting").glob("*/*.yaml"):
        assert file.parent.name in NAMES
        assert (CONF / "method" / file.name).is_file()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("mnist_o")])
def test_omission_is_corrected_as_published(name):
    """Of all training images but the omitted, some are kept for validation: the rule without labels needs them."""
    data = configured(name).data
    assert data["val"] == 5000
    assert (data["omit"], data["keep"], data["omit_bias"]) == (
        ([], [7, 8], 7.6) if name == "mnist_only78" else ([3], [], 3.5)
    )
    assert data["omit_from"] == (["teacher"] if name.endswith("_teacher") else ["baseline", "student"])


def test_recipes_are_shared_where_the_source_shares_them():
    hinton = configured("mnist_hinton")
    for name in ("mnist_omit3", "mnist_only78", "mnist_small_t"):
        other = configured(name)
        assert (other.teacher, other.optim, other.trainer) == (hinton.teacher, hinton.optim, hinton.trainer)
        assert (other.method.alpha, other.method.beta) == (hinton.method.alpha, hinton.method.beta)
    assert configured("mnist_omit3").method == hinton.method
    for name in ("mnist_omit3_duke", "mnist_omit3_duke_teacher"):
        assert configured(name).method == configured("mnist_kd").method
        assert configured(name).trainer == configured("mnist_kd").trainer
    assert configured("cifar_omit7").method == configured("cifar_kd").method
    assert configured("cifar_kd").trainer.max_epochs == 20
    assert configured("mnist_kd").trainer.max_epochs == 25


@pytest.mark.parametrize("name", [path.stem for path in (CONF / "experiment").glob("*.yaml")])
def test_the_text_is_readable(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    comments = [line for line in lines if line.startswith("#")]
    assert max(map(len, comments)) <= 120
