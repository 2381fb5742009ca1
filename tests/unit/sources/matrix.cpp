#include <array>
#include <vector>

namespace demo {

/// A point in the plane.
struct Point {
    double x = 0;
    double y = 0;
};

template <typename T, int N>
class Matrix {
public:
    explicit Matrix(T fill) { cells_.fill(fill); }

    T &at(int row, int column) { return cells_[row * N + column]; }

private:
    std::array<T, N * N> cells_;
};

// The mean of some numbers.
template <typename T>
T mean(const std::vector<T> &values)
{
    T sum{};
    for (const auto &value : values) {
        sum += value;
    }
    return values.empty() ? sum : sum / static_cast<T>(values.size());
}

double length(const Point &point)
{
    return point.x * point.x + point.y * point.y;
}

}  // namespace demo
