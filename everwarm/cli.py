"""The command line. Each command is a few lines around ``client``, ``up``, ``build`` and ``viewer``.

A file a noun has its commands (``cli_cluster``, ``cli_servers``, ``cli_workers``, ``cli_secrets``, ``cli_requests``,
``cli_tail``, ``cli_crashes``, ``cli_doctor``); here they become one program.
Errors are one clear line on stderr and exit code 1; ``--json`` prints one JSON document on stdout and nothing else.
Anything slow is imported inside its command, so that ``--help`` answers at once.
"""

import click

from everwarm import cli_cluster, cli_crashes, cli_doctor, cli_requests, cli_secrets, cli_servers, cli_tail, cli_workers


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="everwarm")
def main() -> None:
    """WebAssembly workers on a Ray cluster, kept warm.

    The state directory is ~/.everwarm, or what EVERWARM_HOME names.
    """


for module in (cli_cluster, cli_servers, cli_workers, cli_secrets, cli_requests, cli_tail, cli_crashes, cli_doctor):
    for command in module.COMMANDS:
        main.add_command(command)


if __name__ == "__main__":
    main(prog_name="everwarm")
