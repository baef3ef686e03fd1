from tokenizer_svc.allowance import Allowance


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_peer_that_leases_nothing_is_not_waited_for() -> None:
    allowance = Allowance()
    allowance.charge(1000, 10**9)
    assert allowance.has_room(1000, 10**9) and not allowance.leases


def test_what_is_submitted_counts_against_the_lease() -> None:
    allowance = Allowance()
    allowance.lease(3, 100, 2.0, idle=False)
    assert allowance.has_room(3, 100) and not allowance.has_room(4, 1) and not allowance.has_room(1, 101)
    allowance.charge(2, 90)
    assert allowance.has_room(1, 10) and not allowance.has_room(1, 11)
    allowance.charge(1, 10)
    assert not allowance.has_room(1, 1)
    allowance.lease(0, 0, 2.0, idle=False)
    assert not allowance.has_room(1, 1)


def test_what_was_submitted_between_two_leases_counts_against_the_second_but_not_the_third() -> None:
    allowance = Allowance()
    allowance.lease(4, 400, 2.0, idle=False)
    allowance.charge(4, 40)
    allowance.lease(4, 400, 2.0, idle=False)
    assert not allowance.has_room(1, 1), "the lease may have been written before the submits arrived"
    allowance.lease(4, 400, 2.0, idle=False)
    assert allowance.has_room(4, 400)


def test_a_lease_lapses_once() -> None:
    clock, lapsed = Clock(), list[int]()
    allowance = Allowance(lapsed.append, clock)
    allowance.lease(5, 100, 2.0, idle=False)
    allowance.charge(2, 10)
    clock.now_s += 1.9
    assert allowance.has_room(3, 90)
    clock.now_s += 0.2
    assert not allowance.has_room(1, 1) and not allowance.has_room(1, 1)
    assert lapsed == [3]
    allowance.lease(1, 10, 2.0, idle=False)
    allowance.lease(1, 10, 2.0, idle=False)
    assert allowance.has_room(1, 10) and lapsed == [3]
    clock.now_s += 3.0
    allowance.lease(1, 10, 2.0, idle=False)
    assert lapsed == [3, 1], "a lease that came too late"


def test_a_peer_with_nothing_waiting_takes_one_request_of_any_size() -> None:
    allowance = Allowance()
    allowance.lease(2, 100, 2.0, idle=False)
    assert not allowance.has_room(1, 5000)
    allowance.lease(2, 100, 2.0, idle=True)
    assert allowance.has_room(1, 5000) and allowance.has_room(128, 5)
    allowance.charge(1, 5000)
    assert not allowance.has_room(1, 5000) and not allowance.has_room(1, 1)
    allowance.lease(2, 100, 2.0, idle=True)
    assert not allowance.has_room(1, 1), "the first may be on its way still"
    allowance.lease(2, 100, 2.0, idle=True)
    assert allowance.has_room(1, 5000)
