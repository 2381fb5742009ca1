#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* A buffer that grows. */
struct buffer {
    char *data;
    size_t length;
    size_t room;
};

typedef struct {
    int first;
    int second;
} pair_t;

enum mode { MODE_READ, MODE_WRITE };

/* Makes room for `more` bytes; 0, or -1 when there is no memory. */
int buffer_reserve(struct buffer *buffer, size_t more)
{
    size_t needed = buffer->length + more;
    if (needed <= buffer->room) {
        return 0;
    }
    size_t room = buffer->room ? buffer->room * 2 : 16;
    while (room < needed) {
        room *= 2;
    }
    char *data = realloc(buffer->data, room);
    if (data == NULL) {
        return -1;
    }
    buffer->data = data;
    buffer->room = room;
    return 0;
}

static int internal_only(void)
{
    return MIN(1, 2);
}

#ifdef WITH_APPEND
int buffer_append(struct buffer *buffer, const char *text)
{
    size_t length = strlen(text);
    if (buffer_reserve(buffer, length) < 0) {
        return -1;
    }
    memcpy(buffer->data + buffer->length, text, length);
    buffer->length += length;
    return 0;
}
#endif
