package org.example.demo;

import java.util.ArrayList;
import java.util.List;

/**
 * A ring buffer.
 */
public final class Ring<T> {
    private final List<T> items;
    private int next = 0;

    public Ring(int size) {
        this.items = new ArrayList<>(size);
    }

    /** Puts an item in, over the oldest one. */
    @Deprecated
    public T put(T item) {
        T before = next < items.size() ? items.get(next) : null;
        if (next < items.size()) {
            items.set(next, item);
        } else {
            items.add(item);
        }
        next = next + 1;
        return before;
    }

    private int left() {
        return items.size() - next;
    }

    interface Visitor {
        void visit(Object item);
    }
}
