import pytest

from tests.cleaning.shard_runs import write_crawl


@pytest.fixture
def crawl(tmp_path):
    write_crawl(tmp_path / "crawl")
    return tmp_path / "crawl"
