"""All of ROS 2: the lifecycle node `yolact`, its messages, its demonstration."""
