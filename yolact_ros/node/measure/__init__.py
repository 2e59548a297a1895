"""`yolact_measure`: measures the node's latency, throughput and memory."""
