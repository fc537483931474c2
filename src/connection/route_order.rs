//! Which route of the settings a client is on, when a reload changes their order.
//!
//! A client keeps its route's place in the order that held when it was chosen, and one bit that
//! says which of the two latest orders that was. So a reload need not touch every client within
//! one turn: until the worker has come by, the place is looked up. Before a third order can
//! come, every client has the second's.

/// A client's route: none yet, or none any more, or its place in one of the two latest orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteNumber(u16);

/// Set in numbers of every other order. There are at most 1,024 routes.
const ODD: u16 = 1 << 15;

impl RouteNumber {
    /// No route.
    pub const NONE: RouteNumber = RouteNumber(u16::MAX);
}

/// The latest order of the routes, and where those of the one before are in it.
#[derive(Debug, Default)]
pub struct RouteOrder {
    /// Zero or [`ODD`].
    parity: u16,
    moved: Vec<Option<u16>>,
}

/// The first order.
pub static FIRST_ORDER: RouteOrder = RouteOrder { parity: 0, moved: Vec::new() };

impl RouteOrder {
    /// The next order: where each route of this one has gone, or that it is no more.
    #[must_use]
    pub fn changed(&self, moved: Vec<Option<u16>>) -> RouteOrder {
        RouteOrder { parity: self.parity ^ ODD, moved }
    }

    /// The number of the route at `place` in the latest order.
    pub fn number(&self, place: u16) -> RouteNumber {
        assert!(place < ODD, "more routes than the settings allow");
        RouteNumber(place | self.parity)
    }

    /// The place in the latest order of the route that has this number.
    pub fn place(&self, number: RouteNumber) -> Option<u16> {
        let place = number.0 & !ODD;
        if number == RouteNumber::NONE {
            None
        } else if number.0 & ODD == self.parity {
            Some(place)
        } else {
            self.moved.get(usize::from(place)).copied().flatten()
        }
    }

    /// The number in the latest order of the route that has this number.
    pub fn renewed(&self, number: RouteNumber) -> RouteNumber {
        self.place(number).map_or(RouteNumber::NONE, |place| self.number(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_the_same_route_in_the_next_order() {
        let first = RouteOrder::default();
        let [zero, one, two] = [0, 1, 2].map(|place| first.number(place));
        let second = first.changed(vec![Some(2), None, Some(0)]);
        assert_eq!([zero, one, two].map(|n| second.place(n)), [Some(2), None, Some(0)]);
        let renewed = [zero, one, two].map(|n| second.renewed(n));
        assert_eq!(renewed, [second.number(2), RouteNumber::NONE, second.number(0)]);
        assert_eq!(renewed.map(|n| second.renewed(n)), renewed, "renewed once");
        // One that is chosen meanwhile.
        let fresh = second.number(1);
        let third = second.changed(vec![Some(0), Some(1), None]);
        assert_eq!(renewed.map(|n| third.place(n)), [None, None, Some(0)]);
        assert_eq!(third.place(fresh), Some(1));
        assert_eq!(third.place(RouteNumber::NONE), None);
    }
}
