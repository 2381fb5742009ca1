//! Shapes and what can be asked of them.

use std::collections::HashMap;
use std::fmt::{self, Display};

use crate::units::Length;

/// Anything with an area.
///
/// Implemented by every shape below.
pub trait Shape {
    /// Square metres.
    fn area(&self) -> f64;

    fn describe(&self) -> String {
        format!("a shape of {} m²", self.area())
    }
}

/// A rectangle, sides in metres.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Rectangle {
    pub width: f64,
    pub height: f64,
}

pub enum Kind {
    Square,
    Oblong { ratio: f64 },
}

macro_rules! square {
    ($side:expr) => {
        Rectangle {
            width: $side,
            height: $side,
        }
    };
}

impl Shape for Rectangle {
    fn area(&self) -> f64 {
        self.width * self.height
    }
}

impl<'a> Rectangle {
    #[inline]
    pub fn scaled(&'a self, factor: f64) -> Self {
        Self { width: self.width * factor, height: self.height * factor }
    }
}

// A note that belongs to nothing below it.

/// The sum of all areas.
#[must_use]
pub fn total_area(shapes: &[Box<dyn Shape>]) -> f64 {
    fn plain(shape: &Box<dyn Shape>) -> f64 {
        shape.area()
    }
    shapes.iter().map(plain).sum()
}

fn private_helper(counts: &mut HashMap<String, usize>, name: &str) -> usize {
    let entry = counts.entry(name.to_owned()).or_insert(0);
    *entry += 1;
    *entry
}

/// Conversions.
pub mod convert {
    use super::Rectangle;

    /// From a pair.
    pub fn from_pair(pair: (f64, f64)) -> Rectangle {
        let (width, height) = pair;
        Rectangle { width, height }
    }

    pub mod deeper {
        pub const LIMIT: usize = 10;

        pub fn limit() -> usize {
            LIMIT
        }
    }
}

thread_local! {
    pub static CACHE: std::cell::RefCell<Vec<f64>> = const { std::cell::RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_has_equal_sides() {
        let shape = square!(2.0);
        assert_eq!(shape.width, shape.height);
    }
}
