// Package queue holds a bounded queue.
package queue

import (
	"errors"
	"sync"

	"example.org/demo/clock"
)

// ErrFull is returned when nothing more fits.
var ErrFull = errors.New("queue is full")

// Queue is a bounded first-in-first-out queue.
type Queue struct {
	mu    sync.Mutex
	items []int
	limit int
}

// New makes a queue for at most limit items.
func New(limit int) *Queue {
	return &Queue{items: make([]int, 0, limit), limit: limit}
}

// Push adds an item.
func (q *Queue) Push(item int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) >= q.limit {
		return ErrFull
	}
	q.items = append(q.items, item)
	return nil
}

func (q *Queue) shrink() {
	for len(q.items) > 0 && q.items[0] < clock.Now() {
		q.items = q.items[1:]
	}
}

func unused() string { return "größe" }
