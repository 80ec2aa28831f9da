from setuptools import setup

NAME = "draftwire_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/draftwire.launch.py"]),
        (f"share/{NAME}/config", ["config/draftwire.yaml"]),
    ],
    install_requires=["setuptools", "draftwire"],
    zip_safe=True,
    maintainer="The draftwire developers",
    maintainer_email="maintainers@draftwire.invalid",
    description="A lifecycle node that drafts on the robot",
    license="Apache-2.0",
    entry_points={"console_scripts": ["draftwire_node = draftwire_ros.node:main"]},
)
