/* A small library in C with the bugs that such libraries have: it believes what it is told.
 *
 * A picture is a byte of width, a byte of height, and the pixels. Its "thumbnail" is the sum of their
 * brightness. */

#include <stdlib.h>
#include <string.h>

static struct {
    int brightness[16];
    int shades; /* how many there are */
} table = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, 16};

/* Bug 1: the size in the head is believed. Up to 65025 bytes go into a block of 4096. */
long thumbs_sum(const unsigned char *picture) {
    size_t area = (size_t)picture[0] * picture[1];
    unsigned char *copy = malloc(4096);
    long sum = 0;
    memcpy(copy, picture + 2, area);
    for (size_t i = 0; i < area; i++)
        sum += table.brightness[copy[i] % table.shades];
    free(copy); /* here, at the latest, the heap is found to be broken */
    return sum;
}

/* Bug 2: memory that is used after it has been given back. */
long thumbs_again(void) {
    unsigned char *copy = malloc(64 << 20);
    free(copy);
    return copy[1000];
}

/* Bug 3: the index is believed. Number 16 is `shades`. Nothing crashes; what comes later is wrong. */
void thumbs_adjust(int shade, int brightness) { table.brightness[shade] = brightness; }
