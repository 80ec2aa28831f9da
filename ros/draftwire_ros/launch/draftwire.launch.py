"""Start the node, configure it, and activate it once that is done."""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition


def generate_launch_description():
    """Return what ``ros2 launch draftwire_ros draftwire.launch.py`` starts."""
    share = get_package_share_directory("draftwire_ros")
    params = DeclareLaunchArgument(
        "params",
        default_value=os.path.join(share, "config", "draftwire.yaml"),
        description="a file of parameters",
    )
    node = LifecycleNode(
        package="draftwire_ros",
        executable="draftwire_node",
        name="draftwire",
        namespace="",
        parameters=[LaunchConfiguration("params")],
        output="screen",
    )
    configure = EmitEvent(
        event=ChangeState(
            lifecycle_node_matcher=matches_action(node),
            transition_id=Transition.TRANSITION_CONFIGURE,
        )
    )
    activate = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=node,
            start_state="configuring",  # not what somebody has deactivated
            goal_state="inactive",
            entities=[
                EmitEvent(
                    event=ChangeState(
                        lifecycle_node_matcher=matches_action(node),
                        transition_id=Transition.TRANSITION_ACTIVATE,
                    )
                )
            ],
        )
    )
    return LaunchDescription([params, node, activate, configure])
