"""The executable: started as users start it, ended by Ctrl-C."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("yolact_ros.msg", reason="needs the messages of this package, built")

from yolact_ros.msg import InstanceArray

PROGRAM = "import sys; from yolact_ros.node.main import main; sys.exit(main())"


class Process:
    """The node in a process of its own; `log` fills with its lines."""

    def __init__(self, *arguments, program=PROGRAM):
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "--ros-args", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stdout))
        self.reader.start()

    def text(self):
        return "".join(self.log)

    def end(self, *numbers):
        """Send signals; the exit status."""
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.02)
        status = self.process.wait(120)
        self.reader.join()
        return status


@pytest.fixture
def start():
    """A function that starts the node in a process."""
    started = []

    def start(*parameters, **options):
        arguments = [word for parameter in parameters for word in ("-p", parameter)]
        started.append(Process(*arguments, **options))
        return started[-1]

    yield start
    for process in started:
        process.process.kill()
        process.process.wait()
        process.reader.join()


def test_ctrl_c_while_images_come(graph, start, weights, image, image_message):
    process = start(f"weights:={weights}", "score_threshold:=0.0", "backend:=torch")
    received = graph.collect(InstanceArray, "/yolact/instances")
    graph.wait_until(lambda: "Waiting for images on /image_raw" in process.text(), "the node")
    camera = graph.camera()
    graph.see(camera, image_message(image), received)
    for _ in range(20):
        camera(image_message(image))
    # Ctrl-C in a terminal reaches the node twice: directly and through ros2 launch.
    assert process.end(signal.SIGINT, signal.SIGINT) == 0, process.text()
    lines = process.text().splitlines()
    assert len(lines) == 3 and all("[INFO]" in line for line in lines), lines
    assert "small.safetensors" in lines[0]
    assert "Running small" in lines[1] and "classes: cat, dog, person" in lines[1]


HANDLERS_ARE_THERE = """
import signal
from yolact_ros.node import main
install = signal.signal
def tell(number, handler):
    install(number, handler)
    print("handles", int(number), flush=True)
signal.signal = tell
main.main()
"""


def test_signals_before_the_node_is_up_and_without_a_model(graph, start):
    early = start(program=HANDLERS_ARE_THERE)
    last = f"handles {int(signal.SIGTERM)}\n"
    graph.wait_until(lambda: last in early.log, "the handlers")
    assert early.end(signal.SIGINT) == 0
    assert "Traceback" not in early.text() and "Waiting" not in early.text()
    idle = start("weights:=/no/such/file")
    graph.wait_until(lambda: "stays unconfigured" in idle.text(), "the reason in the log")
    assert idle.end(signal.SIGTERM) == 0
    assert "Traceback" not in idle.text()


def test_ctrl_c_while_weights_are_downloaded(start, tmp_path, monkeypatch):
    """From a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        process = start("weights:=yolact_resnet50")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(4) in (b"HEAD", b"GET ")
            assert process.end(signal.SIGINT) == 0
    assert "Traceback" not in process.text()


NETWORK_HANGS = """
import threading, warnings
from yolact_ros.node import main
from yolact_ros.node.pipeline import Pipeline
main.SHUTDOWN_LIMIT = 1.0
def hang(*_):
    print("hangs", flush=True)
    warnings.warn("memory is short", RuntimeWarning)
    threading.Event().wait()
Pipeline._begin = hang
main.main()
"""


def test_a_network_that_hangs_does_not_keep_the_node(graph, start, weights, image, image_message):
    process = start(f"weights:={weights}", "backend:=torch", program=NETWORK_HANGS)
    graph.wait_until(lambda: "Waiting for images" in process.text(), "the node")
    camera = graph.camera()

    def hangs():
        camera(image_message(image))
        return "hangs" in process.text()

    graph.wait_until(hangs, "the network to hang")
    assert process.end(signal.SIGINT) == 1
    assert "in hang" in process.text()  # says where
    assert any("[WARN]" in line and "memory is short" in line for line in process.log)


ANOTHER_THREAD_IS_GIVEN_THE_SIGNAL = """
import signal, threading
from yolact_ros.node import main
from yolact_ros.node.pipeline import Pipeline
begin = Pipeline._begin
def end(*arguments):
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    return begin(*arguments)
Pipeline._begin = end
main.main()
"""


def test_the_system_may_give_any_thread_a_signal(graph, start, weights, image, image_message):
    """A main thread that waits for a lock does not learn of it."""
    program = ANOTHER_THREAD_IS_GIVEN_THE_SIGNAL
    process = start(f"weights:={weights}", "backend:=torch", program=program)
    graph.wait_until(lambda: "Waiting for images" in process.text(), "the node")
    camera = graph.camera()

    def ends():
        camera(image_message(image))
        return process.process.poll() is not None

    graph.wait_until(ends, "the end")
    assert process.end() == 0, process.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_documented_program_runs_the_node(graph, start, weights, repository, number):
    text = (repository / "docs" / "node.md").read_text()
    (program,) = (
        block.partition("```")[0]
        for block in text.split("```python\n")[1:]
        if "NodeExecutor()" in block.partition("```")[0]
    )
    process = start(f"weights:={weights}", "backend:=torch", program=program)
    graph.wait_until(lambda: "Waiting for images" in process.text(), "the node")
    assert process.end(number) == 0, process.text()
    assert "Traceback" not in process.text()


PROGRAM_OF_A_USER = """
import rclpy
from yolact_ros.node.yolact_node import YolactNode
rclpy.init()
node = YolactNode("front", automatically_declare_parameters_from_overrides=True)
assert node.get_name() == "front" and node.describe_parameter("weights").description
assert node.trigger_configure() and node.trigger_activate()
DESTROYED
rclpy.shutdown()
print("done")
"""


@pytest.mark.parametrize(
    ("destroyed", "file", "backend"),
    [("node.destroy_node()", "weights", "torch"), ("", "exported", "auto")],
)
def test_a_node_in_a_program_of_its_users_ends_with_it(request, destroyed, file, backend):
    program = PROGRAM_OF_A_USER.replace("DESTROYED", destroyed)
    weights = request.getfixturevalue(file)
    parameters = (f"weights:={weights}", f"backend:={backend}", "autostart:=false")
    words = [word for each in parameters for word in ("-p", each)]
    command = [sys.executable, "-c", program, "--ros-args", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and "done" in ended.stdout, ended.stderr


def test_an_environment_that_was_not_activated_is_asked_for():
    hidden = "import sys; sys.modules['torch'] = None; " + PROGRAM
    process = Process(program=hidden)
    assert process.end() == 1
    assert "torch" in process.text() and "virtual environment activated" in process.text()
    assert "Traceback" not in process.text()


def test_a_bad_value_at_the_start_is_explained(start):
    reasons = {
        "score_threshold:=7.0": "score_threshold out of range Min: 0.0, Max: 1.0, value: 7.0",
        "nms.method:=soft": "nms.method='soft' is not allowed: it must be one of fast",
    }
    file = Process("--params-file", "/no/such/file.yaml")
    namespace = Process("-r", "__ns:=/robot/")
    processes = {parameter: start(parameter) for parameter in reasons}
    assert file.end() == 1
    assert "/no/such/file.yaml" in file.text() and "Traceback" not in file.text()
    assert namespace.end() == 1
    assert "cannot start" in namespace.text() and "Traceback" not in namespace.text()
    for parameter, process in processes.items():
        assert process.end() == 1
        assert reasons[parameter] in process.text() and "Traceback" not in process.text()
