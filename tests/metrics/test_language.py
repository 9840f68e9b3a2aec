"""Words and lengths follow the script."""

from instructrec_jax.metrics.language import has_cjk, script_words, units


def test_words_follow_the_script() -> None:
    assert script_words("Don't STOP-me_now 10²") == ["don", "t", "stop", "me", "now", "10"]
    assert script_words("हिन्दी Grüße") == ["हिन्दी", "grüße"]
    assert script_words("我用GPT4了。สวัสดี") == ["我", "用", "gpt4", "了", "ส", "วั", "ส", "ดี"]
    assert script_words("cafe\u0301") == ["caf\u00e9"]


def test_lengths() -> None:
    assert (
        units("สวัสดี") == 6
        and units("two words") == 2
        and units("两 个字") == 3
        and has_cjk("a 猫")
        and not has_cjk("é—…")
    )
