"""Max-min fair rates for the transfers that share links.

A division of the links is max-min fair when no transfer can be given more without taking some from one that
has no more (Bertsekas and Gallager, "Data Networks", 1992, section 6.5.2). Then every transfer has a
bottleneck: a link that is full and on which no other transfer has a higher rate. Progressive filling finds
it:

    until every transfer has a rate:
        fair share of a link = its spare capacity / its transfers without a rate
        the links with the smallest fair share are bottlenecks: their transfers get that rate, which is taken
        from the spare capacity of all links that they use

When a transfer comes or goes, few others are affected as a rule. So every transfer remembers its bottleneck,
and only affected ones are filled again, into what all the others leave them:

    affected = transfers without a rate, and those whose bottleneck is one of the changed links
    until nobody is added:
        recompute the rates of the affected transfers
        add every transfer whose bottleneck changed: it has more than its fair share of a link that is
        full now, or the link that was its bottleneck no longer limits it
"""

from __future__ import annotations

import numpy as np

from glasscluster.sim.time.contention.compiled import compiled, inlined

SAME_SHARE = 1e-12  # fair shares that differ by less, relatively, are the same: both links are bottlenecks
SLACK = 1e-11  # a link with less of its capacity left is full; a rate above another by less is not above it


@inlined
def narrowest_link_if_alone(transfer, links, route_links):
    """The link that limits a transfer that has all its links to itself; -1 if it shares one of them."""
    narrowest = route_links[transfer.links_begin]
    for k in range(transfer.links_begin, transfer.links_end):
        link = route_links[k]
        if links[link].transfers != 1:
            return -1
        if links[link].capacity < links[narrowest].capacity:
            narrowest = link
    return narrowest


@compiled
def recompute_rates(traffic, route_links, number_of_changed_links, recomputation):
    """Set `new_rate` and `bottleneck` of all that `changed_links` affect.

    `recomputation` is the number of this call, by which it knows whom it has seen. Returns how many transfers
    are in `traffic.affected`.
    """
    n_affected = _directly_affected(traffic, number_of_changed_links, recomputation)
    n_links, n_known = 0, 0
    while n_known < n_affected:
        n_links = _add_links_of(traffic, route_links, n_known, n_affected, n_links, recomputation)
        _leave_out_the_others(traffic, n_links, recomputation)
        n_known = n_affected
        _fill_progressively(traffic, route_links, n_affected, n_links, recomputation)
        n_affected = _add_where_bottleneck_changed(traffic, n_affected, n_links, recomputation)
    return n_affected


@compiled
def _directly_affected(traffic, number_of_changed_links, recomputation):
    """Transfers without a rate, and those whose bottleneck is a changed link; returns how many."""
    transfers, links, entries = traffic.transfers, traffic.links, traffic.entries
    n_affected = 0
    for c in range(number_of_changed_links):
        link = traffic.changed_links[c]
        entry = links[link].first_entry
        while entry >= 0:
            t = entries[entry].transfer
            transfer = transfers[t]
            is_affected = transfer.bottleneck == link or transfer.bottleneck < 0
            if is_affected and transfer.affected_in != recomputation:
                transfer.affected_in = recomputation
                traffic.affected[n_affected] = t
                n_affected += 1
            entry = entries[entry].next
    return n_affected


@compiled
def _add_links_of(traffic, route_links, n_known, n_affected, n_links, recomputation):
    """Add the links of the affected transfers from number `n_known` on; returns how many there are now."""
    transfers, links = traffic.transfers, traffic.links
    for i in range(n_known, n_affected):
        transfer = transfers[traffic.affected[i]]
        for k in range(transfer.links_begin, transfer.links_end):
            link = route_links[k]
            if links[link].affected_in != recomputation:
                links[link].affected_in = recomputation
                traffic.affected_links[n_links] = link
                n_links += 1
    return n_links


@compiled
def _leave_out_the_others(traffic, n_links, recomputation):
    """Start filling: on each affected link, what unaffected transfers leave to the affected ones is spare."""
    transfers, entries = traffic.transfers, traffic.entries
    for i in range(n_links):
        traffic.unfilled_links[i] = traffic.affected_links[i]
        link = traffic.links[traffic.affected_links[i]]
        spare, unfixed = link.capacity, 0
        entry = link.first_entry
        while entry >= 0:
            transfer = transfers[entries[entry].transfer]
            if transfer.affected_in == recomputation:
                transfer.fixed = False
                unfixed += 1
            else:
                spare -= transfer.new_rate
            entry = entries[entry].next
        link.spare, link.unfixed = max(0.0, spare), unfixed
        link.fair_share, link.highest_rate = -1.0, 0.0


@compiled
def _fill_progressively(traffic, route_links, n_affected, n_links, recomputation):
    """Progressive filling of the affected transfers into the spare capacity of their links."""
    transfers, links, entries, unfilled = (
        traffic.transfers,
        traffic.links,
        traffic.entries,
        traffic.unfilled_links,
    )
    n_unfixed = n_affected
    while n_unfixed > 0:
        smallest, n_links = _smallest_fair_share(links, unfilled, n_links)
        # all bottlenecks are found before the first is filled, because filling one changes what is left on
        # others
        n_bottlenecks = _bottlenecks_to_the_front(links, unfilled, n_links, smallest)
        for i in range(n_bottlenecks):
            bottleneck = unfilled[i]
            entry = links[bottleneck].first_entry
            while entry >= 0:
                transfer = transfers[entries[entry].transfer]
                if transfer.affected_in == recomputation and not transfer.fixed:
                    transfer.fixed = True
                    transfer.new_rate, transfer.bottleneck = smallest, bottleneck
                    n_unfixed -= 1
                    for k in range(transfer.links_begin, transfer.links_end):
                        link = links[route_links[k]]
                        link.spare = max(0.0, link.spare - smallest)
                        link.unfixed -= 1
                        link.highest_rate = smallest
                entry = entries[entry].next


@inlined
def _smallest_fair_share(links, unfilled, n_links):
    """The smallest fair share of the first `n_links` of `unfilled`; and how many of these remain.

    Links on which every affected transfer has a rate are dropped.
    """
    smallest, remaining = np.inf, 0
    for i in range(n_links):
        link = links[unfilled[i]]
        if link.unfixed > 0:
            unfilled[remaining] = unfilled[i]
            remaining += 1
            smallest = min(smallest, link.spare / link.unfixed)
    return smallest, remaining


@inlined
def _bottlenecks_to_the_front(links, unfilled, n_links, smallest):
    """Move the links with the smallest fair share to the front of `unfilled`; returns how many."""
    n_bottlenecks = 0
    for i in range(n_links):
        number = unfilled[i]
        link = links[number]
        if link.spare / link.unfixed <= smallest * (1.0 + SAME_SHARE):
            link.fair_share = smallest
            unfilled[i], unfilled[n_bottlenecks] = unfilled[n_bottlenecks], number
            n_bottlenecks += 1
    return n_bottlenecks


@compiled
def _add_where_bottleneck_changed(traffic, n_affected, n_links, recomputation):
    """Add the transfers on the affected links whose bottleneck changed; returns how many are affected now."""
    transfers, links, entries = traffic.transfers, traffic.links, traffic.entries
    for i in range(n_links):
        number = traffic.affected_links[i]
        link = links[number]
        is_bottleneck = link.fair_share >= 0.0
        is_full = is_bottleneck or link.spare <= link.capacity * SLACK
        entry = link.first_entry
        while entry >= 0:
            t = entries[entry].transfer
            transfer = transfers[t]
            if transfer.affected_in != recomputation and transfer.bottleneck >= 0:
                has_more = is_bottleneck and transfer.new_rate > link.fair_share * (1.0 + SLACK)
                is_limited = is_full and transfer.new_rate >= link.highest_rate * (1.0 - SLACK)
                if has_more or (transfer.bottleneck == number and not is_limited):
                    transfer.affected_in = recomputation
                    traffic.affected[n_affected] = t
                    n_affected += 1
            entry = entries[entry].next
    return n_affected
