"""Settings: sources and their order, every kind of mistake, and the reference page."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import las.daemon.config as las_config
import peerd.daemon.config as peerd_config
from las.core.judgement import Rules
from peerd.pki import Identity, Role
from peerd.settings import FILE_BYTES_MAX, ConfigError, check_address, is_loopback, keys_of

ROOT = Path(__file__).parents[2]

PEER = """\
cluster = "shop"
name = "peer-1"
las = ["10.0.0.1:7500", "10.0.0.2:7500"]
data_dir = "data"

[tls]
ca = "tls/ca.pem"
certificate = "tls/peer-1.cert.pem"
key = "/etc/peerd/peer-1.key.pem"
"""

LAS = """\
cluster = "shop"
name = "las-1"
data_dir = "data"

[members]
las-1 = "10.0.0.1:7500"
las-2 = "10.0.0.2:7500"
las-3 = "10.0.0.3:7500"

[tls]
ca = "ca.pem"
certificate = "las-1.cert.pem"
key = "las-1.key.pem"
"""


def load_peer(directory, text=PEER, overrides=None, environment=None):
    path = directory / "peerd.toml"
    path.write_text(text)
    return peerd_config.load_config(path, overrides, environment=environment or {})


def load_las(directory, text=LAS, overrides=None, environment=None):
    path = directory / "las.toml"
    path.write_text(text)
    return las_config.load_config(path, overrides, environment=environment or {})


def mistake(call, *arguments, **keywords) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


# ------------------------------------------------------------------------------ good files


def test_a_short_file_is_enough(tmp_path):
    config = load_peer(tmp_path)
    assert config.listen == "0.0.0.0:7400"
    assert config.advertise == f"{socket.gethostname()}:7400"
    assert config.http_listen == "127.0.0.1:7401"
    assert config.failure_domain.host == socket.gethostname()
    assert config.las == ("10.0.0.1:7500", "10.0.0.2:7500")
    assert config.append.batch_bytes_max == 1024 * 1024
    assert config.testing.faults_file is None


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    config = load_peer(tmp_path)
    assert config.data_dir == tmp_path / "data"
    assert config.tls.ca == tmp_path / "tls" / "ca.pem"
    assert config.tls.key == Path("/etc/peerd/peer-1.key.pem")


def test_lists_of_paths_are_relative_to_the_file_or_the_working_directory(tmp_path, monkeypatch):
    config = load_peer(tmp_path, 'tier.key_files = ["new.key", "/etc/peerd/old.key"]\n' + PEER)
    assert config.tier.key_files == (tmp_path / "new.key", Path("/etc/peerd/old.key"))
    monkeypatch.chdir(tmp_path.parent)
    config = load_peer(tmp_path, environment={"PEERD_TIER_KEY_FILES": "a.key, /b.key"})
    assert config.tier.key_files == (tmp_path.parent / "a.key", Path("/b.key"))


@pytest.mark.parametrize("url", ["http://x", "s3://", "file://host/x", "cold", "s3://a b"])
def test_a_tier_is_a_bucket_or_a_directory(tmp_path, url):
    assert "tier.url" in mistake(load_peer, tmp_path, f'tier.url = "{url}"\n' + PEER)


def test_paths_elsewhere_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    config = load_peer(
        tmp_path, overrides={"data_dir": "here"}, environment={"PEERD_TLS_CA": "ca.pem"}
    )
    assert config.data_dir == tmp_path.parent / "here"
    assert config.tls.ca == tmp_path.parent / "ca.pem"


def test_options_beat_environment_beats_file(tmp_path):
    text = PEER.replace("[tls]", "[append]\nbatch_bytes_max = 2000\n\n[tls]")
    environment = {"PEERD_APPEND_BATCH_BYTES_MAX": "3000", "PEERD_PORT_7400_TCP": "of someone else"}
    assert load_peer(tmp_path, text).append.batch_bytes_max == 2000
    config = load_peer(tmp_path, text, environment=environment)
    assert config.append.batch_bytes_max == 3000
    config = load_peer(tmp_path, text, {"append.batch_bytes_max": "4000"}, environment)
    assert config.append.batch_bytes_max == 4000


def test_every_type_can_be_written_as_text(tmp_path):
    config = load_peer(
        tmp_path,
        environment={
            "PEERD_LAS": "a:1, b:2",
            "PEERD_HTTP_OFF_LOOPBACK": "true",
            "PEERD_STALL_TIMEOUT_MS": "700",
            "PEERD_TESTING_FAULTS_FILE": "/x/faults.json",
            "PEERD_ROLE": "shadow",
        },
    )
    assert config.las == ("a:1", "b:2")
    assert config.http_off_loopback is True
    assert config.stall_timeout_ms == 700
    assert config.testing.faults_file == Path("/x/faults.json")
    assert config.role == "shadow"
    config = load_las(
        tmp_path,
        overrides={"members": "las-1=a:1, las-2=b:2, las-3=c:3", "policy.threshold": "0.7"},
    )
    assert config.members == {"las-1": "a:1", "las-2": "b:2", "las-3": "c:3"}
    assert config.policy.threshold == 0.7


def test_environment_alone_is_enough():
    config = peerd_config.load_config(
        None,
        environment={
            "PEERD_CLUSTER": "shop",
            "PEERD_NAME": "peer-1",
            "PEERD_LAS": "127.0.0.1:7500",
            "PEERD_DATA_DIR": "/data",
            "PEERD_LISTEN": "127.0.0.1:0",
            "PEERD_INSECURE_LOOPBACK": "true",
        },
    )
    assert config.tls_files() is None
    assert config.advertise == "127.0.0.1:0"


def test_settings_do_not_change(tmp_path):
    config = load_peer(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"
    with pytest.raises(ValueError, match="frozen"):
        config.storage.reserve_bytes = 0


def test_the_rules_of_the_judgement_are_the_settings(tmp_path):
    policy = las_config.Policy(threshold=0.7, off_after_s=60, breaker_window_s=30, shadows_max=9)
    rules = policy.rules()
    assert (rules.threshold, rules.off_after_ms, rules.shadows_max) == (0.7, 60_000, 9)
    assert rules.breaker_window_ms == 30_000
    assert las_config.Policy().rules() == Rules()


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("line", "number", "key", "advice"),
    [
        ("nam = 'x'", 5, "nam", "did you mean name?"),  # codespell:ignore
        ("reserve_bytes = 5", 5, "reserve_bytes", "did you mean storage.reserve_bytes?"),
        ("zzz = 1", 5, "zzz", "see docs/configuration.md"),
        (
            "[storage]\nmap_size = 1",
            6,
            "storage.map_size",
            "did you mean storage.map_size_bytes_max",
        ),
        ("[storag]\nreserve_bytes = 1", 6, "storag", "did you mean storage"),  # codespell:ignore
        ("storage.reserve = 1", 5, "storage.reserve", "did you mean storage.reserve_bytes"),
        ('"append" = {batch_bytes = 1}', 5, "append.batch_bytes", "append.batch_bytes_max"),
    ],
)
def test_an_unknown_key_is_named_with_line_and_advice(tmp_path, line, number, key, advice):
    message = mistake(load_peer, tmp_path, PEER.replace("\n[tls]", f"{line}\n\n[tls]"))
    place, _, rest = message.partition(": ")
    assert place.startswith(f"{tmp_path}/peerd.toml:")
    assert int(place.rpartition(":")[2]) in {number, number - 1}
    assert rest.startswith(f"unknown key {key}")
    assert advice in rest


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", "5", "must be a valid string, got 5"),
        ("name", "'a b'", "name 'a b' is not usable"),
        ("cluster", "'Shop'", "cluster name 'Shop' is not usable"),
        ("las", "'10.0.0.1:7500'", "must be a list, got '10.0.0.1:7500'"),
        ("las", "[]", "must have at least 1 item"),
        ("las", "[7500]", "must be a valid string, got 7500"),
        ("las", "['10.0.0.1']", "expected host:port"),
        ("listen", "7400", "must be a valid string, got 7400"),
        ("listen", "':7400'", "expected host:port"),
        ("listen", "'0.0.0.0:65536'", "the port must be"),
        ("role", "'king'", "must be 'any' or 'shadow', got 'king'"),
        ("stall_timeout_ms", "'500'", "must be a valid integer, got '500'"),
        ("stall_timeout_ms", "1.5", "must be a valid integer"),
        ("stall_timeout_ms", "true", "must be a valid integer, got True"),
        ("stall_timeout_ms", "0", "must be greater than or equal to 50, got 0"),
        ("insecure_loopback", "1", "must be a valid boolean, got 1"),
        ("data_dir", "7", "must be a path in quotes, got 7"),
        ("storage", "7", "must be a table, got 7"),
    ],
)
def test_a_wrong_value_is_named_with_line_and_value(tmp_path, key, value, words):
    kept = [line for line in PEER.splitlines() if not line.startswith(f"{key} =")]
    message = mistake(load_peer, tmp_path, "\n".join([f"{key} = {value}", *kept]))
    assert message.startswith(f"{tmp_path}/peerd.toml:1: {key}")
    assert words in message
    assert "more)" not in message


def test_a_wrong_environment_variable_is_named(tmp_path):
    message = mistake(load_peer, tmp_path, environment={"PEERD_STALL_TIMEOUT_MS": "soon"})
    assert message.startswith("environment PEERD_STALL_TIMEOUT_MS: stall_timeout_ms: must be")
    message = mistake(load_peer, tmp_path, environment={"PEERD_LISTEN": "7400"})
    assert message.startswith("environment PEERD_LISTEN: listen: expected host:port")


def test_a_wrong_option_is_named(tmp_path):
    message = mistake(load_peer, tmp_path, overrides={"storage.reserve": "1"})
    assert message.startswith("command line: unknown key storage.reserve: did you mean")
    message = mistake(load_peer, tmp_path, overrides={"storage": "5"})
    assert message.startswith("command line: storage: must be a table")
    message = mistake(load_peer, tmp_path, overrides={"name.first": "x"})
    assert message.startswith("command line: name.first: is below a key that is no table")


def test_a_missing_key_is_named_with_its_purpose(tmp_path):
    message = mistake(load_peer, tmp_path, PEER.replace('name = "peer-1"\n', ""))
    assert message.startswith(f"{tmp_path}/peerd.toml: key name is missing: Name of this daemon")
    message = mistake(load_peer, tmp_path, PEER.replace('ca = "tls/ca.pem"\n', ""))
    assert message.startswith(f"{tmp_path}/peerd.toml:6: key tls.ca is missing")


def test_several_mistakes_are_counted(tmp_path):
    text = PEER.replace('name = "peer-1"', "name = 1\nrole = 2\nnam = 3")
    assert mistake(load_peer, tmp_path, text).endswith("did you mean name? (and 2 more)")


def test_files_that_are_no_configuration(tmp_path):
    path = tmp_path / "peerd.toml"
    assert "no such file: name one with -c" in mistake(peerd_config.load_config, path)
    assert "cannot be read" in mistake(peerd_config.load_config, tmp_path)
    message = mistake(load_peer, tmp_path, PEER + "x = = 1\n")
    assert "not TOML" in message
    assert "line 10" in message
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in mistake(peerd_config.load_config, path)
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    assert "is it the right file" in mistake(peerd_config.load_config, path)


WITHOUT_TLS = PEER.partition("[tls]")[0]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (WITHOUT_TLS, "", "tls: is missing"),
        ("insecure_loopback = true\n" + PEER, ":1", "insecure_loopback: excludes the certificates"),
        ("insecure_loopback = true\n" + WITHOUT_TLS, "", "listen: 0.0.0.0:7400 is off loopback"),
        (
            'insecure_loopback = true\nlisten = "127.0.0.1:7400"\n' + WITHOUT_TLS,
            ":5",
            "las: 10.0.0.1:7500 is off loopback",
        ),
        (
            'http_listen = "0.0.0.0:7401"\n' + PEER,
            ":1",
            "http_listen: 0.0.0.0:7401 is off loopback",
        ),
        ('advertise = "0.0.0.0:7400"\n' + PEER, ":1", "advertise: 0.0.0.0:7400 cannot be dialled"),
        ("append.batch_bytes_max = 4_000_000\n" + PEER, ":1", "must not exceed replication.frame"),
        (
            'tier.access_key_id_file = "id"\n' + PEER,
            ":1",
            "tier.access_key_id_file: and tier.secret_access_key_file go together",
        ),
        (
            "storage.map_size_bytes_max = 1_000_000_000\n" + PEER,
            ":1",
            "storage.reserve_bytes: leaves no room",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, text, place, words):
    message = mistake(load_peer, tmp_path, text)
    assert message.startswith(f"{tmp_path}/peerd.toml{place}: ")
    assert words in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('name = "las-1"', 'name = "las-9"'), "members: lacks this node, 'las-9'"),
        (('las-3 = "10.0.0.3:7500"\n', ""), "members: has 2 nodes: a group has 1, 3 or 5"),
        (("10.0.0.3", "10.0.0.2"), "members: gives one address to two nodes"),
        (("las-3 =", '"las 3" ='), "members: name 'las 3' is not usable"),
        (('"10.0.0.3:7500"', "7500"), "members.las-3: must be a valid string"),
        (("[tls]", "[policy]\noff_share = 1.0\n[tls]"), "policy.off_share: must be"),
        (("[tls]", "[policy]\nthreshold = 1.5\n[tls]"), "policy.threshold: must be less than"),
        (("[tls]", "[policy]\nlease_ms = 1400\n[tls]"), "policy.lease_ms: must be at least three"),
        (("[tls]", "[polici]\nlease_ms = 1400\n[tls]"), "unknown key polici"),
    ],
)
def test_mistakes_of_a_las_node(tmp_path, change, words):
    assert words in mistake(load_las, tmp_path, LAS.replace(*change))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_loopback_addresses(address):
    assert check_address(address) == address
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "10.0.0.1:1", "host:1", "[::]:1", "1270.0.0.1:1"])
def test_other_addresses(address):
    assert check_address(address) == address
    assert not is_loopback(address)


# ------------------------------------------------------------------------------ certificates


def with_files(text, files):
    head = text.partition("[tls]")[0]
    return (
        f'{head}[tls]\nca = "{files.ca}"\ncertificate = "{files.certificate}"\n'
        f'key = "{files.key}"\n'
    )


def test_a_daemon_uses_its_own_certificate(tmp_path, certificates):
    config = load_peer(tmp_path, with_files(PEER, certificates.of[Role.PEER]))
    assert peerd_config.verify_identity(config) == Identity(
        cluster="shop", role=Role.PEER, name="peer-1"
    )
    config = load_las(tmp_path, with_files(LAS, certificates.of[Role.LAS]))
    assert las_config.verify_identity(config).role == Role.LAS


def test_anybody_elses_certificate_is_refused(tmp_path, certificates):
    own = with_files(PEER, certificates.of[Role.PEER])
    config = load_peer(tmp_path, own.replace('name = "peer-1"', 'name = "peer-2"'))
    assert "this daemon's name is 'peer-2'" in mistake(peerd_config.verify_identity, config)
    config = load_peer(tmp_path, own.replace('"shop"', '"store"'))
    assert "this is cluster 'store'" in mistake(peerd_config.verify_identity, config)
    config = load_peer(tmp_path, with_files(PEER, certificates.of[Role.ADMIN]))
    assert "role 'peer' is needed" in mistake(peerd_config.verify_identity, config)
    config = load_peer(tmp_path)
    assert "tls.ca: " in mistake(peerd_config.verify_identity, config)


def test_without_certificates_a_daemon_is_whom_its_settings_name(tmp_path):
    text = 'insecure_loopback = true\nlisten = "127.0.0.1:0"\n' + WITHOUT_TLS
    config = load_peer(tmp_path, re.sub(r"10\.0\.0\.\d", "localhost", text))
    identity = peerd_config.verify_identity(config)
    assert identity == Identity(cluster="shop", role=Role.PEER, name="peer-1")


# ------------------------------------------------------------------------------ the reference

ALL_KEYS = [
    *keys_of(peerd_config.PeerdConfig, peerd_config.ENVIRONMENT_PREFIX),
    *keys_of(las_config.LasConfig, las_config.ENVIRONMENT_PREFIX),
]
UNITS = ("_ms", "_s", "_bytes", "_bytes_max", "_bytes_min", "_bytes_per_s", "_bytes_per_s_max")
# Counts, probabilities and shares have no unit.
WITHOUT_UNIT = {
    "limits.connections_max",
    "limits.requests_per_s",
    "replication.frames_inflight_max",
    "workers",
    "tier.attempts",
    "policy.threshold",
    "policy.off_share",
    "policy.consecutive",
    "policy.exposure_cost",
    "policy.slow_factor",
    "policy.slow_consecutive",
    "policy.link_factor",
    "policy.link_consecutive",
    "policy.exhaustion_share",
    "policy.take_over_shards",
    "policy.exhaustion_consecutive",
    "policy.at_risk_share_max",
    "policy.shadows_max",
    "policy.replace_factor",
    "policy.breaker_share",
    "policy.holdout",
    "policy.rebalance_band",
    "policy.split_shards_max",
}


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.variable)
def test_every_key_has_unit_default_and_description(key):
    assert key.field.description
    assert not key.field.description.endswith(".")
    if key.annotation in {int, float}:
        assert f"_{key.name.rpartition('.')[2]}".endswith(UNITS) or key.name in WITHOUT_UNIT
        assert not key.field.is_required()
        assert key.field.metadata, "a number has bounds"


def test_environment_variables_are_unique():
    variables = [key.variable for key in ALL_KEYS]
    assert len(set(variables)) == len(variables)


def test_the_reference_page_is_current():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for module in ("peerd.daemon.config", "las.daemon.config"):
        printed = subprocess.run(
            [sys.executable, "-m", module, "--reference"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.strip() in page, "run `make docs`"
