"""The table of parameters, and that the parameter file, ROS and the documentation agree with it."""

import re

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2")

from rcl_interfaces.srv import DescribeParameters, ListParameters
from rclpy.parameter import Parameter

from yolact_ros.detection import DetectionSettings
from yolact_ros.network import PUBLISHED
from yolact_ros.node.cameras import Camera
from yolact_ros.node.parameters import PARAMETERS, Parameters
from yolact_ros.node.problems import problems_of


def flat(values, prefix=""):
    """Nested values with their names joined by dots."""
    result = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        result |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return result


def test_the_parameter_file_lists_every_parameter_with_default_and_meaning(repository):
    text = (repository / "config" / "yolact.yaml").read_text()
    values = flat(yaml.safe_load(text)["/**"]["ros__parameters"])
    assert values == {name: info.default for name, info in PARAMETERS.items()}
    assert all(type(values[name]) is type(info.default) for name, info in PARAMETERS.items())
    comments = " ".join(line.strip().lstrip("# ") for line in text.splitlines())
    for info in PARAMETERS.values():
        assert info.description in comments, info.name
        allowed = comments.split(info.description, 1)[1].strip().lower()
        assert allowed.startswith(info.allowed().lower()), info.name


def test_the_readme_has_every_parameter_with_default_and_meaning(repository):
    rows = {}
    for line in (repository / "README.md").read_text().splitlines():
        if match := re.match(r"\| `([a-z_.0-9]+)` \| (.*?) \| (.*?) \| (.*) \|$", line):
            rows[match[1]] = match.groups()[1:]
    for name, info in PARAMETERS.items():
        value, change, meaning = rows[name]
        assert yaml.safe_load(value.strip("`") or "''") == info.default
        assert change == info.change
        assert meaning.startswith(info.description)
        assert info.allowed().lower() in meaning.lower()


def test_ros_tools_are_told_type_range_and_description(graph, weights):
    graph.start(active=False, weights=weights, autostart=False)
    request = ListParameters.Request()
    listed = graph.call(ListParameters, "/yolact/list_parameters", request).result.names
    assert set(PARAMETERS) <= set(listed)
    names = list(PARAMETERS)
    request = DescribeParameters.Request(names=names)
    response = graph.call(DescribeParameters, "/yolact/describe_parameters", request)
    for descriptor, info in zip(response.descriptors, PARAMETERS.values(), strict=True):
        assert descriptor.name == info.name and descriptor.description == info.description
        assert descriptor.type == Parameter.Type.from_parameter_value(info.default).value
        assert descriptor.read_only == (info.change == "start")
        assert all(choice in descriptor.additional_constraints for choice in info.choices)
        ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
        expected = [] if info.low is None else [(info.low, info.high)]
        assert [(r.from_value, r.to_value) for r in ranges] == expected


def test_names_that_are_nearly_right_are_told(graph, weights, capfd):
    """rclpy ignores what the node does not have: other nodes may have it."""
    values = {"mask_encoding": "bits", "score_treshold": 0.9, "overlay.alfa": 0.1, "exposure": 3}
    values["overlay"] = False
    named = {name.replace(".", "__"): value for name, value in values.items()}
    graph.start(active=False, weights=weights, autostart=False, **named)
    told = [line for line in capfd.readouterr().err.splitlines() if "Ignored" in line]
    pairs = (("mask_encoding", "mask.encoding"), ("score_treshold", "score_threshold"))
    pairs += (("overlay.alfa", "overlay.alpha"), ("overlay", "overlay.enabled"))
    for wrong, right in pairs:
        assert any(f"no parameter '{wrong}'; did you mean '{right}'" in line for line in told)
    assert len(told) == 4


def test_every_parameter_says_what_is_allowed():
    for info in PARAMETERS.values():
        default = info.default
        assert len(info.description) > 20 and info.description.endswith(".")
        info.check(default)
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert info.low is not None and info.low < info.high
            for bad in (info.low - 1, info.high + 1, float("nan")):
                with pytest.raises(ValueError, match=re.escape(f"{info.low} to {info.high}")):
                    info.check(bad)


def test_names_are_some_of_a_few():
    chosen = "model backbone dcn_variant precision backend qos.reliability nms.method mask.encoding"
    assert {name for name, info in PARAMETERS.items() if info.choices} == set(chosen.split())
    for info in PARAMETERS.values():
        if info.choices:
            with pytest.raises(ValueError, match=f"{info.choices[-1]}") as caught:
                info.check("another")
            assert info.name in str(caught.value) and "'another'" in str(caught.value)


def test_parameters_of_others_are_passed_over():
    changed = Parameters().with_values(
        [Parameter("use_sim_time", value=True), Parameter("nms.method", value="standard")]
    )
    assert changed == Parameters(nms_method="standard")


def test_the_class_filter_knows_the_classes_of_the_model():
    coco = PUBLISHED["yolact_base"].class_names
    before = DetectionSettings(confidence_threshold=0.1, class_ids=(3,))
    settings = Parameters(classes=" person,  traffic light ,").detection_settings(before, coco)
    assert settings.class_ids == (coco.index("person"), coco.index("traffic light"))
    assert settings.confidence_threshold == 0.1  # of which the node has no parameter
    assert Parameters(classes="").detection_settings(before, coco).class_ids == ()
    with pytest.raises(ValueError, match=r"no class 'persn'; .* and 70 more; close to it: person"):
        Parameters(classes="persn").detection_settings(before, coco)


def test_topics_of_images_and_depth():
    def topics(**values):
        parameters = Parameters(**values)
        return [parameters.subscription_topic(camera) for camera in parameters.cameras()]

    assert topics(image_topic="a/b") == ["a/b"]
    assert topics(image_topic="a/b", compressed=True) == ["a/b/compressed"]
    assert topics(image_topic="a/b/compressed", compressed=True) == ["a/b/compressed"]
    assert topics(image_topic="a, b") == topics(image_topic=("a", "b")) == ["a", "b"]
    assert topics(image_topic=("a", "b"), compressed=True) == ["a/compressed", "b/compressed"]
    for wrong in (5, 1.5, True, (), ("a", ""), "a,,b", "a,a", ("a", "b c"), "/a//b", [1, 2]):
        with pytest.raises(ValueError, match=r"image_topic|no topic name"):
            Parameters(image_topic=wrong)
    with pytest.raises(ValueError, match="a node of its own for each camera"):
        Parameters(image_topic="a, b", depth_topic="d")
    assert Parameters().depth_topics() == ("", "")
    assert Parameters(depth_topic="/d/image").depth_topics() == ("/d/image", "/d/camera_info")
    assert Parameters(depth_topic="/image").depth_topics() == ("/image", "/camera_info")
    assert Parameters(depth_topic="image").depth_topics() == ("image", "camera_info")
    moved = {"image": "/eye/depth", "a": "/eye/a"}.__getitem__
    assert Parameters(depth_topic="image").depth_topics(moved) == ("image", "/eye/camera_info")
    compressed = Parameters(image_topic="a", compressed=True)
    assert compressed.subscription_topic(Camera("a", ""), moved) == "/eye/a/compressed"
    own = Parameters(depth_topic="/d/image", camera_info_topic="/c/info")
    assert own.depth_topics() == ("/d/image", "/c/info")


def test_a_model_that_cannot_be_built_is_seen_before_it_is_loaded():
    sound = Parameters(model="yolact_base", backbone="resnet50", dcn_variant="all")
    assert problems_of(sound) == []
    (problem,) = problems_of(Parameters(weights="yolact_plus_base", backbone="darknet53"))
    assert "dcn_variant" in problem
    (problem,) = problems_of(Parameters(weights="yolact_plus"))
    assert "neither a file nor a model" in problem
    for weights in ("~nobody-of-this-name/w.safetensors", "w" * 300):
        (problem,) = problems_of(Parameters(weights=weights))
        assert weights in problem
    problems = problems_of(Parameters(device="tpu", weights="/no/such.safetensors"))
    assert ["tpu" in each for each in problems] == [True, False]
