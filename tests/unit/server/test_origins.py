"""Pages of other origins: none may ask unless it is named."""

from collections.abc import Iterator

import pytest

from tests.tiny_bundles import TEXTS, make_bundle
from tests.tiny_servers import ask, make_service, with_settings
from trunkline.server.operation import Service

PAGE, OTHER = "https://page.example", "https://other.example"
ALLOWED = "access-control-allow-origin"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with make_service(make_bundle(tmp_path_factory.mktemp("origins"), "intent").path) as made:
        yield made


@pytest.mark.parametrize("origins", [(), (PAGE,)])
def test_answers_are_for_pages_of_named_origins_alone(service: Service, origins: tuple[str, ...]) -> None:
    service = with_settings(service, cors_origins=origins)
    for origin in (PAGE, OTHER):
        response = ask(service, "POST", "/v1/analyze", json={"texts": TEXTS[:1]}, headers={"Origin": origin})
        assert response.status_code == 200
        assert response.headers.get(ALLOWED) == (origin if origin in origins else None)


@pytest.mark.parametrize(("origins", "allowed"), [((), None), ((PAGE,), PAGE)])
def test_a_page_that_asks_beforehand_is_told(service: Service, origins: tuple[str, ...], allowed: str | None) -> None:
    headers = {
        "Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization",
    }  # fmt: skip
    response = ask(with_settings(service, cors_origins=origins), "OPTIONS", "/v1/analyze", headers=headers)
    assert response.headers.get(ALLOWED) == allowed
    assert response.is_success == (allowed is not None)
