"""How a request came: ahead of its user or from a robot, through a proxy, from a page of another origin."""

from __future__ import annotations

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from pydantic import ValidationError
from starlette.requests import Request

from raylla.config import Serving
from raylla.serving.http.arrivals.automatic import BROWSERS, LIBRARY, automatic
from raylla.serving.http.arrivals.origin import base_url
from raylla.serving.money.records import Invalid

CHROME = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
)
ANDROID = (
    "Mozilla/5.0 (Linux; Android 14; {}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Mobile"
)
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("method", "headers", "reason"),
    [
        ("GET", {}, None),
        ("GET", {"user-agent": CHROME}, None),
        ("GET", {"user-agent": ANDROID.format("CUBOT_X18")}, None),
        ("GET", {"user-agent": f"{IPHONE} Mobile/15E148 [Pinterest/iOS]"}, None),
        (
            "GET",
            {"user-agent": "Mozilla/5.0 (Windows NT 10.0; rv:145.0) Gecko/20100101 Firefox/145.0"},
            None,
        ),
        *(
            ("GET", {"user-agent": person}, None)
            for person in (
                "python-httpx/0.28.1",  # an application that follows a link for its user
                "okhttp/4.12.0",
                f"{ANDROID.format('Pixel 10 Pro XL; wv')} Safari/537.36 MetaIAB Facebook",
                f"{CHROME} Code/1.115.0 Electron/39.8.5",
            )
        ),
        ("GET", {"sec-fetch-dest": "document", "purpose": ""}, None),
        ("GET", {"user-agent": CHROME, "sec-purpose": "prefetch"}, Invalid.PREFETCH),
        ("GET", {"user-agent": CHROME, "sec-purpose": "prefetch;prerender"}, Invalid.PREFETCH),
        (
            "GET",
            {"user-agent": CHROME, "sec-purpose": "Prefetch;anonymous-client-ip"},
            Invalid.PREFETCH,
        ),
        ("GET", {"purpose": "prefetch"}, Invalid.PREFETCH),
        ("GET", {"x-purpose": "preview"}, Invalid.PREFETCH),
        ("GET", {"x-moz": "prefetch"}, Invalid.PREFETCH),
        ("HEAD", {"x-moz": "prefetch"}, Invalid.PREFETCH),
        ("HEAD", {"user-agent": CHROME}, Invalid.HEAD),
        *(
            ("GET", {"user-agent": robot}, Invalid.ROBOT)
            for robot in (
                "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
                f"{ANDROID.format('Nexus 5X')} (compatible; bingbot/2.0)",
                "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
                "Twitterbot/1.0",
                "TelegramBot (like TwitterBot)",
                "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)",
                "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
                "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
                "WhatsApp/2.23.20.0 A",
                "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5",
                "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2)",
                "Mozilla/5.0 (compatible; ChatGPT-User/1.0)",
                "Mozilla/5.0 (Linux; Android 5.0) AppleWebKit/537.36 (compatible; Bytespider)",
                "Mozilla/5.0 (compatible; Yahoo! Slurp)",
                "Example link checker (+https://checker.example/about)",
                "Iframely/1.3.1",
                "Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/142.0.0.0",
                "Valve/Steam HTTP Client 1.0 (SteamChatURLLookup)",
                f"{'x' * 1000} Twitterbot",
            )
        ),
    ],
)
def test_what_no_person_has_asked_for(method: str, headers: dict[str, str], reason: Invalid | None) -> None:
    assert automatic(method, headers) is reason


def test_the_package_knows_what_is_left_out_of_it_and_its_own_robots_are_told() -> None:
    patterns = {each["pattern"] for each in CRAWLER_USER_AGENTS_DATA}
    assert patterns >= BROWSERS
    robots = [
        agent
        for each in CRAWLER_USER_AGENTS_DATA
        if each["pattern"] not in BROWSERS and LIBRARY not in each.get("tags", ())
        for agent in each.get("instances", ())
    ]
    assert len(robots) > 1000
    assert [agent for agent in robots if automatic("GET", {"user-agent": agent}) is not Invalid.ROBOT] == []


def asked(peer: str | None, **headers: str) -> Request:
    """A request to http://in.example:8000 from ``peer``."""
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "scheme": "http",
        "method": "GET",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "server": ("in.example", 8000),
        "headers": [(b"host", b"in.example:8000"), *named],
        "client": (peer, 40_000) if peer else None,
    }
    return Request(scope)


HERE, THERE = "http://in.example:8000", "https://ask.example"
SAID = {"x_forwarded_proto": "https", "x_forwarded_host": "ask.example"}


@pytest.mark.parametrize(
    ("networks", "peer", "headers", "base"),
    [
        ((), "10.1.2.3", SAID, HERE),
        ((), "127.0.0.1", SAID, HERE),
        (("10.0.0.0/8",), "10.1.2.3", SAID, THERE),
        (("10.0.0.0/8",), "11.1.2.3", SAID, HERE),
        (("10.0.0.0/8",), None, SAID, HERE),
        (("10.0.0.0/8",), "testclient", SAID, HERE),
        (("192.0.2.7", "2001:db8::/32"), "192.0.2.7", SAID, THERE),
        (("192.0.2.7", "2001:db8::/32"), "2001:db8::9", SAID, THERE),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", SAID, THERE),
        (("10.0.0.0/8",), "10.1.2.3", {}, HERE),
        (("10.0.0.0/8",), "10.1.2.3", {"x_forwarded_proto": "https"}, "https://in.example:8000"),
        (
            ("10.0.0.0/8",),
            "10.1.2.3",
            {"x_forwarded_host": "evil.example, ask.example:81"},
            "http://ask.example:81",
        ),
        (
            ("10.0.0.0/8",),
            "10.1.2.3",
            {"x_forwarded_host": "a.example/path", "x_forwarded_proto": "ftp"},
            HERE,
        ),
        (("10.0.0.0/8",), "10.1.2.3", {"x_forwarded_host": "user@a.example"}, HERE),
    ],
)
def test_forwarded_headers_count_from_trusted_proxies_only(
    networks: tuple[str, ...], peer: str | None, headers: dict[str, str], base: str
) -> None:
    assert base_url(asked(peer, **headers), Serving(trusted_proxies=networks)) == base


def test_a_public_url_counts_before_all_others() -> None:
    serving = Serving(public_url="https://set.example/ask/", trusted_proxies=("10.0.0.0/8",))
    assert base_url(asked("10.1.2.3", **SAID), serving) == "https://set.example/ask"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("trusted_proxies", ["10.0.0.1/8"], "give networks"),
        ("trusted_proxies", ["proxy.example"], "give networks"),
        ("cors_origins", ["app.example"], "no origin"),
        ("cors_origins", ["https://app.example/"], "no origin"),
        ("cors_origins", ["https://App.example"], "lower case"),
        ("click_least_seconds", -1, "greater than or equal to 0"),
        ("clicks_per_user_hour", 0, "greater than or equal to 1"),
        ("links", "html", "'annotations', 'markdown' or 'both'"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(field: str, value: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        Serving.model_validate({field: value})
    assert field in str(caught.value)
