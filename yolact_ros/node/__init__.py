"""Everything that needs ROS 2: the lifecycle node `yolact`, its messages and its demo."""
